"""FedOTP (Li et al. 2024, arXiv:2403.00041): a shared and a private prompt that divide an image's patches among them.

With unit features g_ij of the patches j of image i, and t_c(P_1), t_c(P_2) of the shared and the private prompt:

    S_jp         = g_ij . t_c(P_p)
    T            = argmin_T <T, 1 - S> + epsilon sum T (log T - 1),   sum_p T_jp <= 1/patches,  sum_j T_jp = mass/2
    logits(i, c) = s <T, S> / mass

At mass 1 every patch gives all it has, and T is Sinkhorn's (Cuturi 2013, arXiv:1306.0895); below, patches that fit
neither prompt give less (Dykstra's projections of Benamou et al. 2015, arXiv:1412.5154). T takes no gradient: at the
optimum the objective's derivative by S is -T (the envelope theorem), and the published method holds T fixed likewise.
Ours: iterations in logarithms, of a fixed number; logits divided by the mass, so that their scale is CLIP's; and the
server's model is the same transport to the shared prompt alone, which at mass 1 is the mean over patches.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.precision import FULL
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import Batch, Head, Private, Shared, Weights, accuracy, cross_entropy, draw_prompt


def transport(
    cost: Float[Array, "*batch patches prompts"], epsilon: float, mass: float, iterations: int
) -> Float[Array, "*batch patches prompts"]:
    """The plan T of this module's equations after some iterations; its sums over patches are exact."""
    kernel = -cost / epsilon
    patch, prompt = -jnp.log(cost.shape[-2]), jnp.log(mass / cost.shape[-1])

    def iteration(_, scalings):
        u = patch - logsumexp(kernel + scalings[1][..., None, :], axis=-1)
        u = u if mass == 1 else jnp.minimum(u, 0.0)
        return u, prompt - logsumexp(kernel + u[..., None], axis=-2)

    start = jnp.zeros_like(kernel[..., 0]), jnp.zeros_like(kernel[..., 0, :])
    u, v = jax.lax.fori_loop(0, iterations, iteration, start)
    return jnp.exp(kernel + u[..., None] + v[..., None, :])


class FedOTP(nnx.Module):
    """Two prompts, and the patches' features behind those of each image."""

    head = Head()  # the transport depends on the image
    patches = True

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        key: PRNGKeyArray,
        start: Float[Array, "context width"] | None = None,
    ):
        self.settings = (config.transport_epsilon, config.transport_mass, config.transport_iterations)
        shared, private = jax.random.split(key)
        self.shared = Shared(draw_prompt(config, backbone, shared, start))
        self.private = Private(draw_prompt(config, backbone, private, start))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits = self.personal_logits(batch.features, backbone)
        ce = cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": accuracy(logits, batch)}

    def global_logits(
        self, features: Float[Array, "batch features"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self._logits(features, self.shared[...][None], backbone)

    def personal_logits(
        self, features: Float[Array, "batch features"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self._logits(features, jnp.stack([self.shared[...], self.private[...]]), backbone)

    def _logits(self, features, contexts: Float[Array, "prompts context width"], backbone: Backbone):
        texts = backbone.encode(contexts)
        patches = features.reshape(len(features), -1, texts.shape[-1])[:, 1:]
        similar = jnp.einsum("ijd,pcd->icjp", patches, texts, precision=FULL)
        epsilon, mass, iterations = self.settings
        plan = jax.lax.stop_gradient(transport(1 - jax.lax.stop_gradient(similar), epsilon, mass, iterations))
        return backbone.scale * jnp.sum(plan * similar, axis=(-2, -1)) / mass

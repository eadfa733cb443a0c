"""FedPGP (Cui et al. 2024, arXiv:2405.09771): a shared prompt, and a low-rank private change of it.

    P_k  = P_s + U_k V_k                                   U_k [m, r], V_k [r, d] stay with the client
    pull = mean_c t_c(P_s) . t_c(template),  push = mean_c t_c(P_s) . t_c(P_k)
    loss = CE(P_k) - contrastive_weight log( e^(pull/tau) / (e^(pull/tau) + e^(push/tau)) )

The contrastive term keeps the shared prompt near what CLIP knows and apart from the private ones. Where the description
is silent: similarities are means over classes, and V_k starts at zero, so that every client starts with the shared
prompt (the authors' code takes the term class by class, and draws both factors). U_k starts as N(0, 1/r): a step of V_k
against the gradient G of P_k moves P_k by U_k U_k^T G, which is G on average, so that step sizes mean what they mean of
a prompt that is trained itself. `rank` is at most the number of context tokens, at which the change is of full rank.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import (
    Batch,
    Head,
    Private,
    Shared,
    Weights,
    accuracy,
    cosines,
    cross_entropy,
    draw_prompt,
    product,
)


class FedPGP(nnx.Module):
    """The federation's model is the shared prompt; a client's has its low-rank change added."""

    head = Head(linear=True)

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        key: PRNGKeyArray,
        start: Float[Array, "context width"] | None = None,
    ):
        shared, private = jax.random.split(key)
        self.shared = Shared(draw_prompt(config, backbone, shared, start))
        context, width = self.shared.shape
        rank = min(config.rank, context)
        self.down = Private(jax.random.normal(private, (context, rank)) / math.sqrt(rank))
        self.up = Private(jnp.zeros((rank, width)))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        shared, own = backbone.encode(jnp.stack([self.shared[...], self._own()]))
        logits = backbone.scale * cosines(batch.features, own)
        ce = cross_entropy(logits, batch)
        pull, push = (jnp.mean(jnp.sum(shared * other, axis=-1)) for other in (backbone.zero_shot, own))
        contrastive = jax.nn.softplus((push - pull) / weights.temperature)
        loss = ce + weights.contrastive * contrastive
        return loss, {"ce": ce, "contrastive": contrastive, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.encode(self.shared[...]))

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.encode(self._own()))

    def _own(self) -> Float[Array, "context width"]:
        return self.shared[...] + product(self.down[...], self.up[...])

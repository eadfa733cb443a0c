"""Local CoOp (Zhou et al. 2022, arXiv:2109.01134): each client tunes a prompt of its own; nothing travels."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import Batch, Head, Private, Weights, accuracy, cosines, cross_entropy, draw_prompt


class LocalCoOp(nnx.Module):
    """logits(i, c) = s f_i . t_c(P_k); there is no model of the federation, so its logits are zero-shot CLIP's."""

    head = Head(linear=True)

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        key: PRNGKeyArray,
        start: Float[Array, "context width"] | None = None,
    ):
        self.private = Private(draw_prompt(config, backbone, key, start))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits = self.personal_logits(batch.features, backbone)
        ce = cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.zero_shot)

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.encode(self.private[...]))

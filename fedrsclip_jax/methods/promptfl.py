"""PromptFL (Guo et al. 2022, arXiv:2208.11625): one prompt, averaged over the federation; CoOp when K = 1."""

from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import Batch, Head, Shared, Weights, accuracy, cosines, cross_entropy, draw_prompt


class PromptFL(nnx.Module):
    """logits(i, c) = s f_i . t_c(P_s), trained by cross-entropy; every client has the federation's model."""

    head = Head(linear=True)

    def __init__(
        self,
        config: MethodConfig,
        backbone: Backbone,
        key: PRNGKeyArray,
        start: Float[Array, "context width"] | None = None,
    ):
        self.shared = Shared(draw_prompt(config, backbone, key, start))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits = self.global_logits(batch.features, backbone)
        ce = cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, backbone.encode(self.shared[...]))

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self.global_logits(features, backbone)

"""FedAvg (McMahan et al. 2017, arXiv:1602.05629) of a linear probe on CLIP's image features: no text, no prompt.

Ours: logits carry CLIP's scale s, so that the probe's rows live where text features do and prompts' step sizes serve,
and the probe starts at zero, that is from no knowledge of the classes.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import Batch, Head, Shared, Weights, accuracy, cosines, cross_entropy


class LinearProbe(nnx.Module):
    """logits(i, c) = s f_i . w_c + b_c; every client has the federation's model, C x D + C numbers."""

    head = Head(linear=True, bias=True, own_classes=True)

    def __init__(self, config: MethodConfig, backbone: Backbone, key: PRNGKeyArray, start: jax.Array | None = None):
        classes, embed = backbone.zero_shot.shape
        self.kernel = Shared(jnp.zeros((classes, embed)))
        self.bias = Shared(jnp.zeros(classes))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits = self.global_logits(batch.features, backbone)
        ce = cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        return backbone.scale * cosines(features, self.kernel[...]) + self.bias[...][None]

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self.global_logits(features, backbone)

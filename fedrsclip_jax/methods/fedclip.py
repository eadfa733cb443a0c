"""FedCLIP (Lu et al. 2023, arXiv:2302.13485): an adapter on the image features, averaged; texts are hand-written.

    a_i = softmax(W_2 tanh(W_1 f_i + b_1) + b_2)          which channels matter, D numbers
    logits(i, c) = s  unit(a_i * f_i) . t_c

with the text features t_c of the zero-shot template. The description gives neither the hidden width nor the start; ours
is D, and weights of N(0, 0.02^2), so that all channels start nearly alike, and the first model is nearly zero-shot
CLIP.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, PRNGKeyArray

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.config import MethodConfig
from fedrsclip_jax.methods.base import (
    PROMPT_STD,
    Batch,
    Head,
    Shared,
    Weights,
    accuracy,
    cosines,
    cross_entropy,
    product,
)


class FedCLIP(nnx.Module):
    """One adapter of 2 (D^2 + D) numbers for all clients."""

    head = Head()  # the attention is a softmax of the feature

    def __init__(self, config: MethodConfig, backbone: Backbone, key: PRNGKeyArray, start: jax.Array | None = None):
        embed = backbone.zero_shot.shape[1]
        first, second = (PROMPT_STD * jax.random.normal(k, (embed, embed)) for k in jax.random.split(key))
        self.inner, self.inner_bias = Shared(first), Shared(jnp.zeros(embed))
        self.outer, self.outer_bias = Shared(second), Shared(jnp.zeros(embed))

    def loss(
        self, batch: Batch, backbone: Backbone, weights: Weights
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        logits = self.global_logits(batch.features, backbone)
        ce = cross_entropy(logits, batch)
        return ce, {"ce": ce, "accuracy": accuracy(logits, batch)}

    def global_logits(self, features: Float[Array, "batch embed"], backbone: Backbone) -> Float[Array, "batch classes"]:
        hidden = jnp.tanh(product(features, self.inner[...]) + self.inner_bias[...][None])
        attention = jax.nn.softmax(product(hidden, self.outer[...]) + self.outer_bias[...][None])
        # Channels of equal weight leave the feature as it is.
        adapted = unit(attention * attention.shape[1] * features)
        return backbone.scale * cosines(adapted, backbone.zero_shot)

    def personal_logits(
        self, features: Float[Array, "batch embed"], backbone: Backbone
    ) -> Float[Array, "batch classes"]:
        return self.global_logits(features, backbone)

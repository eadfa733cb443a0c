"""The linear head of a model: weights and bias read off its logits, and held against them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.export.certificate import TOLERANCE
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.methods.base import head_of

_SEED = 0x11EA


class LinearHead(NamedTuple):
    """logits(i, c) = scale f_i . weights_c + bias_c, for image features f_i of unit norm.

    Attributes:
      weights: of unit norm, except where a method averages text features and leaves the mean as it is, or trains them.
      bias: zero of a method whose head has none.
    """

    weights: Float[np.ndarray, "classes embed"]
    bias: Float[np.ndarray, " classes"]

    def logits(self, scale: float, features: Float[np.ndarray, "images embed"]) -> Float[np.ndarray, "images classes"]:
        return scale * features @ self.weights.T + self.bias


def read_off(model: Model) -> LinearHead:
    """Weights and bias of a model whose method says that its head is linear.

    The logits of a feature of zeros are the bias, and those of the identity the weights beside it. Whether that is all
    of the model is tried on two random features of unit norm, with or without PyTorch.

    Raises:
      CheckError: the logits are others.
    """
    scale, head = float(model.backbone.scale), head_of(model.module)
    embed = model.run.task.clip_config.embed
    random = np.random.default_rng(_SEED).normal(size=(2, embed))
    random = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)
    none, identity = np.zeros((1, embed), np.float32), np.eye(embed, dtype=np.float32)
    rows = model.logits(np.concatenate([random, none, identity]))  # at once, to compile once
    bias = rows[2] if head.bias else np.zeros_like(rows[2])
    # safetensors writes memory as it lies, whatever the strides.
    found = LinearHead(np.ascontiguousarray((rows[3:] - bias).T) / np.float32(scale), np.ascontiguousarray(bias))
    difference = np.max(np.abs(rows[:2] - found.logits(scale, random)))
    if not difference <= TOLERANCE:  # NaN is no small difference
        method = model.run.config.method.name
        raise CheckError(
            f"{method} says that its logits are linear in an image's feature ({head}), and of random features they "
            f"differ from weights and bias by {difference:.2g}, more than {TOLERANCE:g}; mend `head` of the method, or "
            "export its prompts"
        )
    return found

"""CLIP: two towers and a temperature."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fedrsclip_jax.clip.text import TextTower
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.clip.vision import VisionTower

# Tokens of some images whose activations stay in a processor's cache between the layers.
ROWS_IN_CACHE = 800


@dataclass(frozen=True)
class CLIPConfig:
    """Everything that fixes the shapes and the arithmetic of a CLIP.

    Attributes:
      text, vision: the towers.
      embed: width of the joint space.
      vocabulary, positions: of the text tower; `positions` is the longest sequence it can read.
      image_size, patch_size: pixels.
      sos_id, eos_id: token ids; features are read at the first EOS.
    """

    text: TowerConfig
    vision: TowerConfig
    embed: int
    vocabulary: int
    positions: int
    image_size: int
    patch_size: int
    sos_id: int
    eos_id: int


class CLIP(nnx.Module):
    """Contrastive language-image model (Radford et al. 2021, arXiv:2103.00020)."""

    def __init__(self, config: CLIPConfig, *, rngs: nnx.Rngs):
        self.text = TextTower(
            config.text,
            vocabulary=config.vocabulary,
            positions=config.positions,
            embed=config.embed,
            sos_id=config.sos_id,
            eos_id=config.eos_id,
            rngs=rngs,
        )
        self.vision = VisionTower(
            config.vision,
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed=config.embed,
            rngs=rngs,
        )
        self.logit_scale = nnx.Param(jnp.log(jnp.asarray(1 / 0.07)))

    def encode_text(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch embed"]:
        """Unit-norm text features."""
        return unit(self.text(tokens))

    def encode_image(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """Unit-norm image features of preprocessed images."""
        return unit(self.vision(images))

    def encode_images(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """Likewise of many images, without a gradient: on a CPU a few at a time."""
        count = max(1, ROWS_IN_CACHE // self.vision.position.shape[0])
        if jax.default_backend() != "cpu" or len(images) <= count:
            return self.encode_image(images)
        even = len(images) // count * count
        turns = images[:even].reshape(-1, count, *images.shape[1:])
        features = jax.lax.map(self.encode_image, turns).reshape(even, -1)
        if even == len(images):
            return features
        return jnp.concatenate([features, self.encode_image(images[even:])])


def unit(x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Rows scaled to norm one; a zero row stays zero, and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

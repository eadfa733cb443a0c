"""CLIP: two towers and a temperature."""

import math
from dataclasses import dataclass
from functools import partial

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

    def encode_patches(self, images: Float[Array, "batch height width 3"], grid: int) -> Float[Array, "batch features"]:
        """Unit-norm features of each image and behind them those of its patches, end to end.

        Args:
          grid: patches along a side, to which those of the tower are averaged; it divides theirs.
        """
        whole, patches = jnp.split(self.vision.tokens(images), [1], axis=1)
        side = math.isqrt(patches.shape[1])
        cells = patches.reshape(len(images), grid, side // grid, grid, side // grid, -1)
        pooled = jnp.mean(cells, axis=(2, 4)).reshape(len(images), grid * grid, -1)
        return unit(jnp.concatenate([whole, pooled], axis=1)).reshape(len(images), -1)

    def encode_images(
        self, images: Float[Array, "batch height width 3"], grid: int | None = None
    ) -> Float[Array, "batch features"]:
        """Features of many images, with `grid` those of patches too, without a gradient: on a CPU a few at a time."""
        encode = self.encode_image if grid is None else partial(self.encode_patches, grid=grid)
        count = max(1, ROWS_IN_CACHE // self.vision.position.shape[0])
        if jax.default_backend() != "cpu" or len(images) <= count:
            return encode(images)
        even = len(images) // count * count
        turns = images[:even].reshape(-1, count, *images.shape[1:])
        features = jax.lax.map(encode, turns).reshape(even, -1)
        if even == len(images):
            return features
        return jnp.concatenate([features, encode(images[even:])])


def unit(x: Float[Array, "*batch embed"]) -> Float[Array, "*batch embed"]:
    """Rows scaled to norm one; a zero row stays zero, and its gradient finite."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), 1e-24))

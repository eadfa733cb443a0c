"""The image tower of CLIP: a vision transformer read at its class token."""

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from fedrsclip_jax.clip.transformer import Block, TowerConfig


class VisionTower(nnx.Module):
    """ViT with a patch projection without bias, LN before and after the blocks, and a final projection."""

    def __init__(self, config: TowerConfig, *, image_size: int, patch_size: int, embed: int, rngs: nnx.Rngs):
        width = config.width
        self.patch_size = patch_size
        normal = nnx.initializers.normal
        # A convolution whose stride is its kernel is one matrix product over flattened patches.
        linear = partial(
            nnx.Linear, use_bias=False, kernel_init=normal(width**-0.5), precision=config.precision, rngs=rngs
        )
        self.patch = linear(3 * patch_size**2, width)
        tokens = (image_size // patch_size) ** 2 + 1
        self.class_token = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))
        self.position = nnx.Param(normal(width**-0.5)(rngs.params(), (tokens, width)))
        self.norm_pre = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm_post = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.projection = linear(width, embed)

    def __call__(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch embed"]:
        """Projected features, not yet of unit norm, fp32; `images` are preprocessed (normalised)."""
        x = self._embedded(images)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.projection(self.norm_post(last.first(x))).astype(jnp.float32)

    def tokens(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens embed"]:
        """Likewise at every token: the class token, then the patches by rows of the image."""
        x = self._embedded(images)
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm_post(x)).astype(jnp.float32)

    def _embedded(self, images: Float[Array, "batch height width 3"]) -> Float[Array, "batch tokens channels"]:
        """Class token and patches in front of the blocks."""
        n, height, width, _ = images.shape
        size = self.patch_size
        patches = images.reshape(n, height // size, size, width // size, size, 3).transpose(0, 1, 3, 2, 4, 5)
        kernel = self.patch.kernel[...]
        x = self.patch(patches.reshape(n, -1, 3 * size**2).astype(kernel.dtype))
        first = jnp.broadcast_to(self.class_token[...], (n, 1, x.shape[-1]))
        return self.norm_pre(jnp.concatenate([first, x], axis=1) + self.position[...][None])

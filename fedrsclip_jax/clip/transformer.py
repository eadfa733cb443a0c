"""The pre-LN transformer block that both towers of CLIP are made of."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from fedrsclip_jax.clip.attention import attend
from fedrsclip_jax.clip.precision import FULL


@dataclass(frozen=True)
class TowerConfig:
    """Sizes of one tower.

    Attributes:
      width: channels of a token.
      layers: transformer blocks.
      heads: attention heads; divides `width`.
      mlp_width: hidden channels of the MLP.
      activation: `quick_gelu` (OpenAI's weights) or `gelu`.
      eps: of every layer normalisation.
      precision: of every matrix product; see `clip.precision`.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    eps: float = 1e-5
    precision: jax.lax.Precision = FULL


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x), the activation OpenAI trained CLIP with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * Phi(x) with the error function, as `gelu` means in Hugging Face configurations."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class Transposed(NamedTuple):
    """The matrices of a frozen block turned round, for the products of its backward pass."""

    qkv: Float[Array, "qkv width"]
    out: Float[Array, "width width"]
    mlp_in: Float[Array, "mlp width"]
    mlp_out: Float[Array, "width mlp"]


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def frozen_product(
    x: Float[Array, "rows inputs"],
    kernel: Float[Array, "inputs outputs"],
    transposed: Float[Array, "outputs inputs"],
    precision: jax.lax.PrecisionLike = FULL,
) -> Float[Array, "rows outputs"]:
    """x @ kernel of a kernel that takes no gradient, whose backward product reads the kernel turned round.

    A product with few rows spends a good part of its time on bringing the kernel into order, and on a CPU this costs
    up to twice the product itself if the kernel lies the wrong way.
    """
    return jnp.matmul(x, kernel, precision=precision)


frozen_product.defvjp(
    lambda x, kernel, transposed, precision: (jnp.matmul(x, kernel, precision=precision), transposed),
    lambda precision, transposed, gradient: (jnp.matmul(gradient, transposed, precision=precision), None, None),
)


def linear(
    layer: nnx.Linear, x: Float[Array, "*batch inputs"], transposed: Float[Array, "outputs inputs"] | None
) -> Float[Array, "*batch outputs"]:
    """The layer's output; with its kernel turned round the layer is frozen and `x` a matrix."""
    if transposed is None:
        return layer(x)
    product: Any = frozen_product(x, layer.kernel[...], transposed, layer.precision)
    return product if layer.bias is None else product + layer.bias[...][None]


class Block(nnx.Module):
    """Attention and MLP, each behind a layer normalisation and a residual connection.

    Queries, keys and values come from one fused projection: one large matrix product is faster than
    three small ones. The pieces are public because the text tower runs them in its own order.
    """

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads, self.precision = config.heads, config.precision
        self.activation = config.activation
        self.norm_attention = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        linear, normal = partial(nnx.Linear, precision=config.precision, rngs=rngs), nnx.initializers.normal
        self.qkv = linear(width, 3 * width, kernel_init=normal(width**-0.5))
        residual_std = (width * 2 * config.layers) ** -0.5
        self.out = linear(width, width, kernel_init=normal(residual_std))
        self.norm_mlp = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.mlp_in = linear(width, config.mlp_width, kernel_init=normal((2 * width) ** -0.5))
        self.mlp_out = linear(config.mlp_width, width, kernel_init=normal(residual_std))

    def transposed(self) -> Transposed:
        """Copies for the backward pass of a block that is frozen."""
        layers = (self.qkv, self.out, self.mlp_in, self.mlp_out)
        return Transposed(*(jnp.array(layer.kernel[...].T) for layer in layers))

    def heads_of(
        self, x: Float[Array, "*batch width"], transposed: Transposed | None = None
    ) -> tuple[
        Float[Array, "*batch heads head"],
        Float[Array, "*batch heads head"],
        Float[Array, "*batch heads head"],
    ]:
        """Normalised queries, keys and values of tokens; queries already carry 1/sqrt(head).

        With `transposed`, here and in `finish`, the block is frozen and `x` is a matrix.
        """
        fused = linear(self.qkv, self.norm_attention(x), transposed and transposed.qkv)
        q, k, v = (t.reshape(*t.shape[:-1], self.heads, -1) for t in jnp.split(fused, 3, axis=-1))
        return q * q.shape[-1] ** -0.5, k, v

    def mlp(
        self, x: Float[Array, "*batch width"], transposed: Transposed | None = None
    ) -> Float[Array, "*batch width"]:
        hidden = ACTIVATIONS[self.activation](linear(self.mlp_in, self.norm_mlp(x), transposed and transposed.mlp_in))
        return linear(self.mlp_out, hidden, transposed and transposed.mlp_out)

    def finish(
        self,
        x: Float[Array, "*batch width"],
        attended: Float[Array, "*batch heads head"],
        transposed: Transposed | None = None,
    ) -> Float[Array, "*batch width"]:
        """The block's output, given its input and what its attention gathered."""
        x = x + linear(self.out, attended.reshape(x.shape), transposed and transposed.out)
        return x + self.mlp(x, transposed)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "tokens tokens"] | None = None,
        transposed: Transposed | None = None,
    ) -> Float[Array, "batch tokens width"]:
        # Dense layers see one matrix of all tokens: with a batch axis XLA's CPU backend takes 1.7 x as long for
        # their gradients. Only attention needs to know which token is whose.
        flat = x.reshape(-1, x.shape[-1])
        q, k, v = (t.reshape(*x.shape[:2], *t.shape[1:]) for t in self.heads_of(flat, transposed))
        attended = attend(q, k, v, mask, self.precision)
        return self.finish(flat, attended.reshape(-1, *attended.shape[2:]), transposed).reshape(x.shape)

    def first(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch width"]:
        """The output at the first token alone: the others' queries, outputs and MLP are left out."""
        batch, _, width = x.shape
        normed = self.norm_attention(x)
        kernel, bias = self.qkv.kernel[...], jnp.asarray(self.qkv.bias)
        product = partial(jnp.matmul, precision=self.precision)
        q = product(normed[:, 0], kernel[:, :width]) + bias[None, :width]
        k, v = jnp.split(product(normed.reshape(-1, width), kernel[:, width:]) + bias[None, width:], 2, axis=-1)
        q, k, v = (t.reshape(batch, -1, self.heads, width // self.heads) for t in (q, k, v))
        return self.finish(x[:, 0], attend(q * q.shape[-1] ** -0.5, k, v, precision=self.precision)[:, 0])

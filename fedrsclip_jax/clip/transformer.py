"""The pre-LN transformer block that both towers of CLIP are made of."""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float


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
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str = "quick_gelu"
    eps: float = 1e-5


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * sigmoid(1.702 x), the activation OpenAI trained CLIP with."""
    return x * jax.nn.sigmoid(1.702 * x)


def exact_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """x * Phi(x) with the error function, as `gelu` means in Hugging Face configurations."""
    return jax.nn.gelu(x, approximate=False)


ACTIVATIONS: dict[str, Callable] = {"quick_gelu": quick_gelu, "gelu": exact_gelu}


class Block(nnx.Module):
    """Attention and MLP, each behind a layer normalisation and a residual connection.

    Queries, keys and values come from one fused projection: one large matrix product is faster than
    three small ones. The pieces are public because the text tower runs them in its own order.
    """

    def __init__(self, config: TowerConfig, *, rngs: nnx.Rngs):
        width = config.width
        self.heads = config.heads
        self.activation = config.activation
        self.norm_attention = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=nnx.initializers.normal(width**-0.5), rngs=rngs)
        residual_std = (width * 2 * config.layers) ** -0.5
        self.out = nnx.Linear(width, width, kernel_init=nnx.initializers.normal(residual_std), rngs=rngs)
        self.norm_mlp = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.mlp_in = nnx.Linear(
            width, config.mlp_width, kernel_init=nnx.initializers.normal((2 * width) ** -0.5), rngs=rngs
        )
        self.mlp_out = nnx.Linear(config.mlp_width, width, kernel_init=nnx.initializers.normal(residual_std), rngs=rngs)

    def heads_of(
        self, x: Float[Array, "*batch width"]
    ) -> tuple[
        Float[Array, "*batch heads head"],
        Float[Array, "*batch heads head"],
        Float[Array, "*batch heads head"],
    ]:
        """Normalised queries, keys and values of tokens; queries already carry 1/sqrt(head)."""
        q, k, v = jnp.split(self.qkv(self.norm_attention(x)), 3, axis=-1)
        q, k, v = (t.reshape(*t.shape[:-1], self.heads, -1) for t in (q, k, v))
        return q * q.shape[-1] ** -0.5, k, v

    def mlp(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        return self.mlp_out(ACTIVATIONS[self.activation](self.mlp_in(self.norm_mlp(x))))

    def finish(
        self, x: Float[Array, "*batch width"], attended: Float[Array, "*batch heads head"]
    ) -> Float[Array, "*batch width"]:
        """The block's output, given its input and what its attention gathered."""
        x = x + self.out(attended.reshape(x.shape))
        return x + self.mlp(x)

    def __call__(
        self, x: Float[Array, "batch tokens width"], mask: Bool[Array, "tokens tokens"] | None = None
    ) -> Float[Array, "batch tokens width"]:
        # Dense layers see one matrix of all tokens: with a batch axis XLA's CPU backend takes 1.7 x as long for
        # their gradients. Only attention needs to know which token is whose.
        flat = x.reshape(-1, x.shape[-1])
        q, k, v = (t.reshape(*x.shape[:2], *t.shape[1:]) for t in self.heads_of(flat))
        attended = attend(q, k, v, mask)
        return self.finish(flat, attended.reshape(-1, *attended.shape[2:])).reshape(x.shape)


def attend(
    q: Float[Array, "batch queries heads head"],
    k: Float[Array, "batch keys heads head"],
    v: Float[Array, "batch keys heads head"],
    mask: Bool[Array, "queries keys"] | None = None,
) -> Float[Array, "batch queries heads head"]:
    """Softmax attention; where `mask` is False a query does not see a key. Softmax in fp32."""
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        logits = jnp.where(mask[None, None], logits, -jnp.inf)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1).astype(v.dtype), v)


def causal_mask(tokens: int) -> Bool[Array, "tokens tokens"]:
    """True where key j is not after query i."""
    return jnp.tril(jnp.ones((tokens, tokens), bool))

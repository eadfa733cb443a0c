"""The text tower of CLIP, and two ways to run class names behind a learned context through it.

`plain` is the path everyone writes: every class a whole sequence. `prompted` is equal to it and far
cheaper. Both rest on the tower being causal: nothing after EOS reaches EOS, and what stands before the
class name, `[SOS] context`, has the same activations for all classes, so it is computed once and its
keys and values are shared. In the last block only the EOS position needs a query, an output and an MLP.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from fedrsclip_jax.clip.transformer import Block, TowerConfig, attend, causal_mask


class Suffixes(NamedTuple):
    """What stands behind the context: the tokens of `name . [EOS]`, one row a class.

    Attributes:
      tokens: ids, padded on the right with anything.
      eos: position of EOS in its row.
    """

    tokens: Int[Array, "classes length"]
    eos: Int[Array, " classes"]


class TextTower(nnx.Module):
    """Causal pre-LN transformer read at the EOS token."""

    def __init__(
        self,
        config: TowerConfig,
        *,
        vocabulary: int,
        positions: int,
        embed: int,
        sos_id: int,
        eos_id: int,
        rngs: nnx.Rngs,
    ):
        width = config.width
        normal = nnx.initializers.normal
        self.sos_id = sos_id
        self.eos_id = eos_id
        self.token = nnx.Param(normal(0.02)(rngs.params(), (vocabulary, width)))
        self.position = nnx.Param(normal(0.01)(rngs.params(), (positions, width)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm_post = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.projection = nnx.Linear(width, embed, use_bias=False, kernel_init=normal(width**-0.5), rngs=rngs)

    @property
    def width(self) -> int:
        return self.token.shape[1]

    @property
    def positions(self) -> int:
        return self.position.shape[0]

    def __call__(self, tokens: Int[Array, "batch length"]) -> Float[Array, "batch embed"]:
        """Projected features of token sequences, read at the first EOS of each; not yet of unit norm."""
        eos = jnp.argmax(tokens == self.eos_id, axis=1)
        return self.plain(self.token[...][tokens], eos)

    def plain(
        self, embeddings: Float[Array, "batch length width"], eos: Int[Array, " batch"]
    ) -> Float[Array, "batch embed"]:
        """Projected features of sequences of token embeddings, read at `eos`; the oracle of `prompted`."""
        length = embeddings.shape[1]
        x = embeddings.astype(self.token.dtype) + self.position[...][None, :length]
        mask = causal_mask(length)
        for block in self.blocks:
            x = block(x, mask)
        return self._read(x[jnp.arange(x.shape[0]), eos])

    def prompted(self, context: Float[Array, "context width"], suffixes: Suffixes) -> Float[Array, "classes embed"]:
        """Projected features of `[SOS] context name . [EOS]` for every class; not yet of unit norm.

        Costs (1 + context) + classes x length tokens, where `plain` costs classes x the whole length.
        """
        dtype = self.token.dtype
        classes, length = suffixes.tokens.shape
        token, position = self.token[...], self.position[...]
        first = jnp.concatenate([token[self.sos_id][None], context.astype(dtype)])
        prefix = first.shape[0]
        first = first + position[:prefix]
        names = token[suffixes.tokens] + position[None, prefix : prefix + length]
        # Prefix and names go through every dense layer as one matrix; only attention tells them apart.
        x = jnp.concatenate([first, names.reshape(classes * length, -1)])
        *blocks, last = self.blocks
        mask = causal_mask(length)

        for block in blocks:
            q, k, v = block.heads_of(x)
            own = _attend_behind(*(_rows(t, prefix, classes, length) for t in (q, k, v)), k[:prefix], v[:prefix], mask)
            shared = attend(q[None, :prefix], k[None, :prefix], v[None, :prefix], causal_mask(prefix))[0]
            x = block.finish(x, jnp.concatenate([shared, own.reshape(classes * length, *own.shape[2:])]))

        q, k, v = last.heads_of(x)
        at = jnp.arange(classes)
        q = _rows(q, prefix, classes, length)[at, suffixes.eos][:, None]
        # The mask now differs by class: EOS sees its own row up to itself.
        mask = jnp.arange(length)[None] <= suffixes.eos[:, None]
        own = _attend_behind(
            q,
            _rows(k, prefix, classes, length),
            _rows(v, prefix, classes, length),
            k[:prefix],
            v[:prefix],
            mask[:, None],
        )
        x = x[prefix:].reshape(classes, length, -1)[at, suffixes.eos]
        return self._read(last.finish(x, own[:, 0]))

    def _read(self, x: Float[Array, "batch width"]) -> Float[Array, "batch embed"]:
        return self.projection(self.norm_post(x)).astype(jnp.float32)


def _rows(
    x: Float[Array, "tokens heads head"], prefix: int, classes: int, length: int
) -> Float[Array, "classes length heads head"]:
    """The class-name tokens of a flat token matrix, one row a class."""
    return x[prefix:].reshape(classes, length, *x.shape[1:])


def _attend_behind(q, k, v, prefix_k, prefix_v, mask):
    """Attention of each class's tokens over the shared prefix (all of it) and over their own row (masked).

    `q, k, v` are [classes, tokens, heads, head], the prefix's keys and values [prefix, heads, head], the mask
    [tokens, tokens] or [classes, tokens, tokens]. The prefix is never copied per class.
    """
    before = jnp.einsum("cqhd,phd->chqp", q, prefix_k, preferred_element_type=jnp.float32)
    own = jnp.einsum("cqhd,ckhd->chqk", q, k, preferred_element_type=jnp.float32)
    own = jnp.where(mask[None, None] if mask.ndim == 2 else mask[:, None], own, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([before, own], axis=-1), axis=-1).astype(v.dtype)
    split = prefix_k.shape[0]
    return jnp.einsum("chqp,phd->cqhd", weights[..., :split], prefix_v) + jnp.einsum(
        "chqk,ckhd->cqhd", weights[..., split:], v
    )

"""The text tower of CLIP, and two ways to run class names behind a learned context through it.

`plain` is the path everyone writes: every class a whole sequence. `prompted` is equal to it and far
cheaper. Both rest on the tower being causal: nothing after EOS reaches EOS, and what stands before the
class name, `[SOS] context`, has the same activations for all classes, so it is computed once and its
keys and values are shared. So are equal beginnings of the names (see `Suffixes`). In the last block only
the EOS position needs an output and an MLP.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from fedrsclip_jax.clip.attention import attend, causal_mask
from fedrsclip_jax.clip.suffixes import Suffixes
from fedrsclip_jax.clip.transformer import Block, TowerConfig, Transposed, linear


class TransposedTower(NamedTuple):
    """The matrices of a frozen tower a second time, turned round, for the products of its backward pass."""

    blocks: tuple[Transposed, ...]
    projection: Float[Array, "embed width"]


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
        self.precision = config.precision
        self.token = nnx.Param(normal(0.02)(rngs.params(), (vocabulary, width)))
        self.position = nnx.Param(normal(0.01)(rngs.params(), (positions, width)))
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm_post = nnx.LayerNorm(width, epsilon=config.eps, rngs=rngs)
        self.projection = nnx.Linear(
            width, embed, use_bias=False, kernel_init=normal(width**-0.5), precision=config.precision, rngs=rngs
        )

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
        self,
        embeddings: Float[Array, "batch length width"],
        eos: Int[Array, " batch"],
        transposed: TransposedTower | None = None,
    ) -> Float[Array, "batch embed"]:
        """Projected features of sequences of token embeddings, read at `eos`; the oracle of `prompted`."""
        length = embeddings.shape[1]
        x = embeddings.astype(self.token.dtype) + self.position[...][None, :length]
        mask = causal_mask(length)
        for block, turned in self._blocks(transposed):
            x = block(x, mask, turned)
        return self._read(x[jnp.arange(x.shape[0]), eos], transposed)

    def transposed(self) -> TransposedTower:
        """Copies for `plain` and `prompted`; with them the tower takes no gradient in `plain` either."""
        blocks = tuple(block.transposed() for block in self.blocks)
        return TransposedTower(blocks, jnp.array(self.projection.kernel[...].T))

    def prompted(
        self,
        contexts: Float[Array, "prompts context width"],
        suffixes: Suffixes,
        transposed: TransposedTower | None = None,
    ) -> Float[Array, "prompts classes embed"]:
        """Projected features of `[SOS] context name . [EOS]` for every context and class; not yet of unit norm.

        Costs (1 + context) + nodes of the names' tree for each context, where `plain` costs classes x the whole
        length. The tower is frozen here: gradients are exact for the contexts, and for nothing else.
        """
        dtype = self.token.dtype
        prompts, context, width = contexts.shape
        token, position = self.token[...], self.position[...]
        prefix = 1 + context
        sos = jnp.broadcast_to(token[self.sos_id], (prompts, 1, width))
        first = jnp.concatenate([sos, contexts.astype(dtype)], axis=1) + position[None, :prefix]
        names = token[suffixes.tokens.reshape(-1)] + position[prefix + suffixes.depth.reshape(-1)]
        x = jnp.concatenate([first, jnp.broadcast_to(names, (prompts, *names.shape))], axis=1)
        rows = x.shape[1]
        # Contexts and names go through every dense layer as one matrix; only attention tells them apart.
        x = x.reshape(prompts * rows, width)
        sees = _who_sees_whom(prefix, suffixes, prompts)
        *blocks, last = self._blocks(transposed)

        def gather(heads):
            q, k, v = (_by_block(t, prompts, prefix, suffixes) for t in heads)
            return _flat(attend(q, k, v, sees, self.precision), prompts, prefix)

        for number, (block, turned) in enumerate(blocks):
            heads = block.heads_of(x, turned)
            if number == 0:
                # Of what enters the first block only the context takes a gradient.
                own = block.heads_of(x.reshape(prompts, rows, width)[:, 1:prefix].reshape(-1, width), turned)
                heads = tuple(_with_gradient_of(*pair, prompts, prefix) for pair in zip(heads, own, strict=True))
            x = block.finish(x, gather(heads), turned)
        block, turned = last
        attended = gather(block.heads_of(x, turned))
        read = (rows * jnp.arange(prompts)[:, None] + prefix + suffixes.eos_nodes[None]).reshape(-1)
        x = block.finish(x[read], attended[read], turned)
        return self._read(x, transposed).reshape(prompts, suffixes.path.shape[0], -1)

    def _blocks(self, transposed: TransposedTower | None):
        turned = (None,) * len(self.blocks) if transposed is None else transposed.blocks
        return zip(self.blocks, turned, strict=True)

    def _read(self, x: Float[Array, "batch width"], transposed: TransposedTower | None) -> Float[Array, "batch embed"]:
        turned = None if transposed is None else transposed.projection
        return linear(self.projection, self.norm_post(x), turned).astype(jnp.float32)


@jax.custom_vjp
def _same(value, source):
    """`value`, whose gradient goes to `source`, which is equal to it; nothing of `source` itself is then computed."""
    return value


_same.defvjp(lambda value, source: (value, None), lambda _, gradient: (None, gradient))


def _with_gradient_of(
    x: Float[Array, "rows heads head"], source: Float[Array, "sources heads head"], prompts: int, prefix: int
) -> Float[Array, "rows heads head"]:
    """Rows of which the contexts' take their gradient through `source`, and the others none."""
    fixed = jax.lax.stop_gradient(x).reshape(prompts, -1, *x.shape[1:])
    context = _same(fixed[:, 1:prefix], source.reshape(prompts, -1, *x.shape[1:]))
    return jnp.concatenate([fixed[:, :1], context, fixed[:, prefix:]], axis=1).reshape(x.shape)


def _who_sees_whom(prefix: int, suffixes: Suffixes, prompts: int) -> Bool[Array, "masks tokens tokens"]:
    """The mask of prefix and names: causal, and along the branches of the tree.

    A single block's serves every context; several blocks' come once for each context.
    """
    blocks, nodes = suffixes.tokens.shape
    above = jnp.concatenate([causal_mask(prefix), jnp.zeros((prefix, nodes), bool)], axis=1)
    above = jnp.broadcast_to(above, (blocks, *above.shape))
    below = jnp.concatenate([jnp.ones((blocks, nodes, prefix), bool), suffixes.ancestors], axis=2)
    sees = jnp.concatenate([above, below], axis=1)
    return sees if blocks == 1 else jnp.tile(sees, (prompts, 1, 1))


def _by_block(
    x: Float[Array, "rows heads head"], prompts: int, prefix: int, suffixes: Suffixes
) -> Float[Array, "batch tokens heads head"]:
    """Rows as sequences `prefix, nodes of a block`, one for each context and block; the prefix is in all of them."""
    blocks, nodes = suffixes.tokens.shape
    x = x.reshape(prompts, -1, *x.shape[1:])
    if blocks == 1:
        return x
    tail = x.shape[2:]
    first = jnp.broadcast_to(x[:, None, :prefix], (prompts, blocks, prefix, *tail))
    names = x[:, prefix:].reshape(prompts, blocks, nodes, *tail)
    return jnp.concatenate([first, names], axis=2).reshape(prompts * blocks, prefix + nodes, *tail)


def _flat(x: Float[Array, "batch tokens heads head"], prompts: int, prefix: int) -> Float[Array, "rows heads head"]:
    """The inverse of `_by_block`: of the prefix, which all blocks computed alike, the first block's is kept."""
    tail = x.shape[2:]
    if x.shape[0] == prompts:
        return x.reshape(-1, *tail)
    x = x.reshape(prompts, -1, *x.shape[1:])
    names = x[:, :, prefix:].reshape(prompts, -1, *tail)
    return jnp.concatenate([x[:, 0, :prefix], names], axis=1).reshape(-1, *tail)

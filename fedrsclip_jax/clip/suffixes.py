"""Class names as the tree of their tokens, packed so that no product runs over padding."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

# Names see only their own block, so that attention among them grows by the class and not by its square. Below this
# many nodes one block is cheaper than several.
NODES_A_BLOCK = 256


class Suffixes(NamedTuple):
    """What stands behind the context: the tokens of `name . [EOS]` of every class, equal beginnings held once.

    In a causal tower a token's activations depend on its predecessors alone, so that tokens with the same ones are one
    node of a tree and are computed once for all classes. A class lies wholly in one block; blocks are of one size, and
    their last nodes may be filler, which nobody sees.

    Attributes:
      tokens: ids of the nodes.
      depth: tokens of the name that stand before a node.
      ancestors: which nodes of its block a node sees; itself among them.
      path: the nodes of a class's tokens, counted through all blocks; behind EOS, EOS again.
    """

    tokens: Int[Array, "blocks nodes"]
    depth: Int[Array, "blocks nodes"]
    ancestors: Bool[Array, "blocks nodes nodes"]
    path: Int[Array, "classes length"]

    @property
    def eos_nodes(self) -> Int[Array, " classes"]:
        """Where a class is read."""
        return self.path[:, -1]

    @property
    def rows(self) -> Int[Array, "classes length"]:
        """Token ids of each class, one row a class, padded with EOS."""
        return self.tokens.reshape(-1)[self.path]

    @property
    def eos(self) -> Int[Array, " classes"]:
        """Position of EOS in its row."""
        return self.depth.reshape(-1)[self.eos_nodes]


def pack(
    rows: Sequence[Sequence[int]], nodes_a_block: int = NODES_A_BLOCK, *, before: int = 0, multiple_of: int = 1
) -> Suffixes:
    """The tree of some rows of token ids, each of which ends in EOS, in about equal blocks.

    Args:
      before: tokens in front of every name: start of sequence, and context.
      multiple_of: of what these and the nodes of a block are a multiple, by filler.
    """
    prefixes = {tuple(row[:end]) for row in rows for end in range(1, len(row) + 1)}
    even = -(-len(prefixes) // -(-len(prefixes) // nodes_a_block))
    blocks: list[dict[tuple[int, ...], int]] = [{}]
    places = []
    # In sorted order, so that equal beginnings come to lie in one block.
    for number in sorted(range(len(rows)), key=lambda number: tuple(rows[number])):
        row = tuple(rows[number])
        if len(blocks[-1]) + len(row) / 2 > even and blocks[-1]:
            blocks.append({})
        block = blocks[-1]
        for end in range(1, len(row) + 1):
            block.setdefault(row[:end], len(block))
        places.append((number, len(blocks) - 1, [block[row[:end]] for end in range(1, len(row) + 1)]))

    nodes = max(map(len, blocks))
    nodes += -(before + nodes) % multiple_of
    tokens = np.zeros((len(blocks), nodes), np.int32)
    depth = np.zeros_like(tokens)
    ancestors = np.tile(np.eye(nodes, dtype=bool), (len(blocks), 1, 1))
    path = np.zeros((len(rows), max(map(len, rows))), np.int32)
    for number, block, own in places:
        tokens[block, own] = rows[number]
        depth[block, own] = np.arange(len(own))
        for place, node in enumerate(own):
            ancestors[block, node, own[:place]] = True
        path[number] = block * nodes + np.asarray(own + own[-1:] * (path.shape[1] - len(own)))
    return Suffixes(*map(jnp.asarray, (tokens, depth, ancestors, path)))

"""The private variables of all clients, of which only those that have taken part take memory."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Int, PyTree

from fedrsclip_jax.errors import InputError


class Population:
    """Private variables by client number; those of a client whose update never counted are its initial draw.

    Grows by doubling, so that a cohort costs what it is large, whatever the population.

    Attributes:
      size: clients in all.
      row_bytes: of one client's variables.
    """

    def __init__(self, draw: Callable[[Int[np.ndarray, " clients"]], PyTree], size: int):
        """`draw` maps client numbers to their initial private variables, stacked along a leading axis."""
        self.size = size
        self._draw = draw
        self._row: dict[int, int] = {}
        self._leaves: list[np.ndarray] | None = None
        shapes = jax.eval_shape(draw, np.zeros(1, np.int32))
        self._tree = jax.tree.structure(shapes)
        self._rows = [(leaf.shape[1:], leaf.dtype) for leaf in jax.tree.leaves(shapes)]
        self.row_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    @property
    def took_part(self) -> Int[np.ndarray, " clients"]:
        """Numbers of the clients whose update has counted at least once, ascending."""
        return np.sort(np.fromiter(self._row, np.int64, len(self._row)))

    def has(self, ids: Int[np.ndarray, " clients"]) -> Bool[np.ndarray, " clients"]:
        """Which of some clients have taken part."""
        return np.fromiter((int(k) in self._row for k in ids), bool, len(ids))

    def forget_untrained(self) -> None:
        """Drops clients whose variables are their initial draw, bit for bit.

        Checkpoints of older versions also hold clients that were drawn and never answered.
        """
        state = self.state()
        drawn = jax.tree.leaves(self._draw(state["ids"].astype(np.int32))) if len(state["ids"]) else []
        pairs = zip(state["leaves"].values(), drawn, strict=True)
        same = [(kept == leaf).reshape(len(leaf), -1).all(axis=1) for kept, leaf in pairs]
        if same:
            stays = ~np.all(same, axis=0)
            leaves = {name: leaf[stays] for name, leaf in state["leaves"].items()}
            self.restore({"ids": state["ids"][stays], "leaves": leaves})

    def gather(self, ids: Int[np.ndarray, " clients"]) -> PyTree:
        """Private variables of clients, stacked; a negative number (padding) gives some finite value."""
        if self._leaves is not None and self._row and all(int(k) in self._row for k in ids if k >= 0):
            rows = [self._row[int(k)] if k >= 0 else 0 for k in ids]  # nobody is new
            return jax.tree.unflatten(self._tree, [kept[rows] for kept in self._leaves])
        ids = np.maximum(ids, 0)
        leaves = [np.array(leaf) for leaf in jax.tree.leaves(self._draw(ids.astype(np.int32)))]
        known = [(slot, self._row[int(k)]) for slot, k in enumerate(ids) if int(k) in self._row]
        if known and self._leaves is not None:
            slots, rows = map(list, zip(*known, strict=True))
            for leaf, kept in zip(leaves, self._leaves, strict=True):
                leaf[slots] = kept[rows]
        return jax.tree.unflatten(self._tree, leaves)

    def scatter(self, ids: Int[np.ndarray, " clients"], private: PyTree) -> None:
        """Keeps new private variables of clients; padding is passed over."""
        slots = np.flatnonzero(ids >= 0)
        rows = [self._row.setdefault(int(ids[slot]), len(self._row)) for slot in slots]
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(private)]
        self._make_room([leaf[:0] for leaf in leaves], len(self._row))
        assert self._leaves is not None
        for kept, leaf in zip(self._leaves, leaves, strict=True):
            kept[rows] = leaf[slots]

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds: numbers of the clients that took part and their variables, one leaf a key."""
        ids = self.took_part
        rows = [self._row[int(k)] for k in ids]
        leaves = [kept[rows] for kept in self._leaves or []]
        return {"ids": ids, "leaves": {str(i): leaf for i, leaf in enumerate(leaves)}}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes back to what `state` gave; whatever was kept since is forgotten.

        Raises:
          InputError: that was of clients with other variables.
        """
        self._row, self._leaves = {}, None
        ids = np.asarray(state["ids"])
        if len(ids):
            leaves = [np.asarray(state["leaves"][str(i)]) for i in range(len(state["leaves"]))]
            found = [(leaf.shape[1:], leaf.dtype) for leaf in leaves]
            if found != self._rows:
                raise InputError(
                    f"the checkpoint holds private variables {found} where this run has {self._rows}; what changes "
                    "them cannot be changed within a run: start a new one in another folder, with init_from=run:FOLDER"
                )
            self.scatter(ids, jax.tree.unflatten(self._tree, leaves))

    def _make_room(self, like: list[np.ndarray], needed: int) -> None:
        if self._leaves is None:
            self._leaves = [np.empty((max(needed, 16), *leaf.shape[1:]), leaf.dtype) for leaf in like]
        have = len(self._leaves[0]) if self._leaves else needed
        if needed > have:
            self._leaves = [
                np.concatenate([kept, np.empty((max(needed, 2 * have) - have, *kept.shape[1:]), kept.dtype)])
                for kept in self._leaves
            ]

"""Runs saved by Orbax: the server's state, the private prompts of every client ever drawn, the round."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import Server
from fedrsclip_jax.federated.population import Population

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run; a context manager, on leaving which everything is on disk."""

    def __init__(self, workdir: Path, keep: int = 1):
        self.folder, self._keep = (workdir / FOLDER).absolute(), keep

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        if "_manager" in self.__dict__:
            self._manager.wait_until_finished()
            self._manager.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Every process has all that is saved, on its host. So Orbax is told of one process and waits for no other: the
        # first writes, and whoever sees the folder reads.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(max_to_keep=self._keep, create=False, multiprocessing_options=alone)
        return ocp.CheckpointManager(self.folder, options=options)

    def save(self, number: int, server: Server, population: Population) -> None:
        """Saves the state after round `number`; returns before it is on disk."""
        if not distributed.first():
            return
        tree = {"server": _leaves(server), "population": population.state()}
        self._manager.save(number, args=ocp.args.StandardSave(tree))

    def restore(self, server: Server, population: Population, which: str = "last") -> tuple[int, Server]:
        """A checkpoint: its round and the server's state; `population` is filled.

        Args:
          server: one of the same shape, for the structure; leaves that it lacks at its end are left out.
          which: `last`, `best` or a round.

        Raises:
          InputError: there is no such checkpoint.
        """
        number = self._number(which)
        tree: Any = self._manager.restore(number, args=ocp.args.StandardRestore())
        leaves = [jax.numpy.asarray(tree["server"][name]) for name in _leaves(server)]
        population.restore(tree["population"])
        return number, jax.tree.unflatten(jax.tree.structure(server), leaves)

    def _number(self, which: str) -> int:
        kept = sorted(self._manager.all_steps())
        if not kept:
            raise InputError(f"{self.folder} holds no checkpoint; give the --workdir of a run that has finished")
        if which == "last":
            return kept[-1]
        if which.isdecimal() and int(which) in kept:
            return int(which)
        what = "marks none as best" if which == "best" else f"holds none of round {which}"
        raise InputError(f"--checkpoint={which}: {self.folder} {what}; kept are {', '.join(map(str, kept))}")


def _leaves(server: Server) -> dict[str, np.ndarray]:
    """Leaves in the order of the tree, by number: Orbax then needs to know no class of ours."""
    return {f"{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(server))}

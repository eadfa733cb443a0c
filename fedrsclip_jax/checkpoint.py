"""Runs saved by Orbax: the server's state, the private prompts of every client ever drawn, the round."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import Server
from fedrsclip_jax.federated.population import Population

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one run; a context manager, on leaving which everything is on disk."""

    def __init__(self, workdir: Path, keep: int = 1):
        self.folder = (workdir / FOLDER).absolute()
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_) -> None:
        self._manager.wait_until_finished()
        self._manager.close()

    def save(self, number: int, server: Server, population: Population) -> None:
        """Saves the state after round `number`; returns before it is on disk."""
        tree = {"server": _leaves(server), "population": population.state()}
        self._manager.save(number, args=ocp.args.StandardSave(tree))

    def restore(self, server: Server, population: Population) -> tuple[int, Server]:
        """The newest checkpoint: its round and the server's state; `population` is filled.

        Args:
          server: one of the same shape, for the structure.
        """
        number = self._manager.latest_step()
        if number is None:
            raise InputError(f"{self.folder} holds no checkpoint; give the --workdir of a run that has finished")
        tree: Any = self._manager.restore(number, args=ocp.args.StandardRestore())
        leaves = [jax.numpy.asarray(tree["server"][name]) for name in _leaves(server)]
        population.restore(tree["population"])
        return number, jax.tree.unflatten(jax.tree.structure(server), leaves)


def _leaves(server: Server) -> dict[str, np.ndarray]:
    """Leaves in the order of the tree, by number: Orbax then needs to know no class of ours."""
    return {f"{i:03d}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(server))}

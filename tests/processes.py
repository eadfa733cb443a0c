"""Small federations run by the engine on any number of devices; as a program, one of several processes.

    python -m tests.processes BACKBONE RESULT

All cases go into RESULT, an npz file that the first process writes.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

CASES: dict[str, dict[str, str]] = {
    "everyone, two lanes": {"spmd.clients_per_device": "2", "eval.every": "2"},
    "a cohort": {"cohort": "6", "dropout": "0.3"},
}
# Adam divides a gradient by its own size: where that is small, a last digit of it grows into the first ones of a step.
# So Adam is held to equal bits, and not to 1e-5.
IN_ORDER: dict[str, dict[str, str]] = {"a cohort": {"local.optimizer": "adam"}}
ROUNDS = 4


def outcome(folder: Path, case: str, *, devices: int, ordered: bool, **more: str) -> dict[str, Any]:
    """Prompts and scores after some rounds: `shared/...` and `private/...` by leaf, `scores` flat.

    Args:
      more: keys of `spmd` beside those of the case.
    """
    import jax

    from fedrsclip_jax.data.clients import PartitionedClients
    from fedrsclip_jax.data.partition import Partition
    from fedrsclip_jax.evaluate import score_federation
    from fedrsclip_jax.federated.client import Dataset
    from fedrsclip_jax.federated.engine import Engine
    from fedrsclip_jax.federated.mesh import replicate
    from fedrsclip_jax.methods import find_method
    from tests import toy

    keys = {
        "rounds": str(ROUNDS),
        "eval.every": str(ROUNDS),
        **CASES[case],
        **(IN_ORDER.get(case, {}) if ordered else {}),
    }
    keys |= {"spmd.devices": str(devices), "spmd.ordered_reduce": str(ordered)}
    keys |= {f"spmd.{name}": value for name, value in more.items()}
    config = toy.settings(**keys)
    data = toy.dataset()
    data = Dataset(np.asarray(data.features), np.asarray(data.labels))
    owned = np.arange(len(data.labels), dtype=np.int32)
    bounds = np.concatenate([[0], np.cumsum(toy.COUNTS)])
    clients = PartitionedClients(Partition(owned, bounds, owned, bounds))
    frozen = toy.backbone(folder)
    engine = Engine(
        config,
        find_method(config.method.name),
        frozen,
        None,
        clients,
        supply=lambda rows: Dataset(data.features[:, rows], data.labels[rows]),
        resident=lambda: data,
    )
    number = 0
    while number < ROUNDS:
        number += len(engine.advance(number + 1, ROUNDS - number))
    mesh = engine.plan.mesh
    scores = score_federation(
        engine.plan.graph,
        mesh,
        engine.server.shared,
        engine.population,
        clients,
        np.arange(clients.num_clients),
        replicate(mesh, data),
        data.labels,
        engine.backbone,
    )
    result = {f"shared/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(engine.server.shared))}
    private = engine.population.gather(np.arange(len(toy.COUNTS)))
    result |= {f"private/{i}": np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(private))}
    seen = {"scores": jax.tree.leaves(scores), "devices": mesh.size, "lanes": engine.lanes}
    return result | {name: np.asarray(value, np.float64) for name, value in seen.items()}


def main(folder: str, result: str) -> None:
    from fedrsclip_jax import distributed

    distributed.start()
    found = {
        f"{case}/{ordered}/{name}": value
        for case in CASES
        for ordered in (False, True)
        for name, value in outcome(Path(folder), case, devices=0, ordered=ordered).items()
    }
    if distributed.first():
        np.savez(result, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])

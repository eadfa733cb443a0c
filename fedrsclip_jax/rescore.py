"""A finished run scored again from its last checkpoint."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedrsclip_jax import comparison
from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import divide, encode_images, load_task

# What may be said anew of a finished run: where its data and backbone lie, and the machine.
MOVABLE = ("backbone", "data.source", "data.tfds_dir", "spmd.devices", "spmd.clients_per_device")


def rescore(workdir: Path, overrides: Sequence[tuple[str, str]], progress: Progress) -> dict[str, Any]:
    """The comparison table of one run, recomputed.

    Args:
      workdir: folder of a finished run.
      overrides: keys that say where things lie now; see `MOVABLE`.

    Raises:
      InputError: the folder holds no finished run, or data or backbone are not the ones of the run.
    """
    for name, _ in overrides:
        if name not in MOVABLE:
            raise InputError(
                f"--config.{name}: a finished run is scored as it was; only {', '.join(MOVABLE)} may differ"
            )
    written = workdir / "config.json"
    if not written.is_file():
        raise InputError(f"--workdir: {workdir} holds no config.json; give the folder of a run of `fedrsclip train`")
    try:
        config = configuration.resolve(Config, json.loads(written.read_text()), overrides)
    except json.JSONDecodeError as error:
        raise InputError(f"--workdir: {written} is not JSON ({error}); give the folder of a sound run") from error
    config = dataclasses.replace(config, seeds=1, baselines=())
    summary = workdir / "summary.json"
    if not summary.is_file():
        raise InputError(f"--workdir: {workdir} holds no summary.json; the run has not finished")
    task = load_task(config)
    if task.digest != json.loads(summary.read_text())["backbone_sha256"]:
        raise InputError(f"backbone: {config.backbone} has other weights than the run had; give the same backbone")
    features = encode_images(config, task, progress)
    clients = divide(config, task, features.readable)
    if clients.partition.digest() != Partition.load(workdir / "partition.npz").digest():
        raise InputError(
            f"{workdir / 'partition.npz'} differs from what config.json and {config.data.source} give; "
            "the images have changed since the run"
        )
    federation = Federation(config, task, features, clients)
    with Checkpoints(workdir) as checkpoints:
        _, federation.server = checkpoints.restore(federation.server, federation.population)
    scores = {
        "seed": config.seed,
        "split": config.eval.split,
        "uplink_params_per_client_round": federation.traffic.params,
        "zero_shot": score_zero_shot(features.plain, task.labels, clients, federation.backbone),
        **federation.score(),
    }
    return comparison.tabulate({config.method.name: [scores]}, config.method.name)

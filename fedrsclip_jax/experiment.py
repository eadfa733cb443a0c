"""One federated run, from a configuration to a folder of results; read it from top to bottom."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedrsclip_jax import compilation, distributed
from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.files import check_new, make_folder, write_json, write_text
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import Task, divide


def run(
    config: Config, task: Task, features: Features, workdir: Path, progress: Progress, encode_seconds: float = 0.0
) -> dict[str, Any]:
    """Trains, evaluates and saves one run.

    Args:
      task, features: shared by runs on the same data; see `task.load_task` and `task.encode_images`.
      workdir: a new or empty folder.
      encode_seconds: what encoding took, for the summary.

    Returns:
      What `summary.json` says.

    Raises:
      InputError: settings that do not fit the data or the backbone, or a run that diverges; nothing is left
        in `workdir` then.
    """
    with distributed.together():
        check_new(workdir)
        clients = divide(config, task, features.readable)
    federation = Federation(config, task, features, clients)
    with distributed.together():
        make_folder(workdir)
    try:
        return _run(config, task, features, federation, workdir, progress, encode_seconds)
    except InputError:
        # A run that diverges leaves nothing behind, and may be tried again in the same place.
        if distributed.first():
            shutil.rmtree(workdir)
        raise


def _run(
    config: Config,
    task: Task,
    features: Features,
    federation: Federation,
    workdir: Path,
    progress: Progress,
    encode_seconds: float,
) -> dict[str, Any]:
    clients = federation.clients
    write_json(workdir / "config.json", configuration.to_dict(config))
    if distributed.first():
        clients.save(workdir / "partition.npz")
    zero_shot = score_zero_shot(features.plain, task.labels, clients, federation.scored, federation.backbone)

    seconds = {"encode": encode_seconds, "compile": 0.0, "train": 0.0, "evaluate": 0.0}
    lines: list[dict[str, Any]] = []
    bytes_sent = steps = 0
    with (
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
        progress.track(f"{config.method.name}, seed {config.seed}", config.rounds, unit="rounds") as bar,
    ):
        number = 0  # rounds done; round 0 is the initial draw
        while number < config.rounds:
            pause = _next_pause(config, number)
            with compilation.measure(seconds, "train"):
                dispatch = federation.advance(number + 1, pause - number)
            for done in dispatch:
                number += 1
                steps += done.steps
                bytes_sent += (done.answered + len(done.refused)) * federation.traffic.bytes
            bar.advance_to(
                number,
                loss=done.figures.get("loss", 0.0),
                accuracy=done.figures.get("accuracy", 0.0),
                clients_per_second=done.clients / max(done.seconds, 1e-9),
                bytes_sent=bytes_sent,
            )
            last = number == config.rounds
            if last or number % config.eval.every == 0:
                with compilation.measure(seconds, "evaluate"):
                    scores = federation.score(complete=last)
                lines.append({"round": number, **done.figures, "bytes_sent": bytes_sent, **_brief(scores)})
                write_text(
                    workdir / "metrics.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
                )
            if last or (config.checkpoint.every and number % config.checkpoint.every == 0):
                checkpoints.save(number, federation.server, federation.population)

    summary = {
        "method": config.method.name,
        "backbone": config.backbone,
        "dataset": config.data.source,
        "split": config.eval.split,
        "num_classes": len(task.source.class_names),
        "class_names": list(task.source.class_names),
        "num_clients": clients.num_clients,
        "num_scored_clients": len(federation.scored),
        "num_images": len(task.labels),
        "unreadable_images": int(np.sum(~features.readable)),
        "rounds": config.rounds,
        "seed": config.seed,
        "uplink_params_per_client_round": federation.traffic.params,
        "uplink_bytes_per_client_round": federation.traffic.bytes,
        "bytes_sent": bytes_sent,
        "zero_shot": zero_shot,
        **scores,
        "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
        "client_steps_per_second": steps / max(seconds["train"], 1e-9),
        "wasted_lane_share": federation.wasted,
        "devices": federation.plan.mesh.size,
        "processes": jax.process_count(),
        "clients_per_device": federation.lanes,
        "state_sha256": federation.digest(),
        "backbone_sha256": task.digest,
        "partition_sha256": clients.digest(),
        "config_sha256": configuration.digest(config),
    }
    write_json(workdir / "summary.json", summary)
    return summary


def _next_pause(config: Config, number: int) -> int:
    """The next round after `number` that ends with an evaluation or a checkpoint."""
    steps = [every for every in (config.eval.every, config.checkpoint.every) if every]
    return min(config.rounds, *((number // every + 1) * every for every in steps))


def _brief(scores: dict[str, Any]) -> dict[str, Any]:
    """What a line of `metrics.jsonl` keeps of the scores."""
    chosen = {"global": ("accuracy", "macro_f1", "ece"), "personalised": ("mean", "std", "worst_decile")}
    return {part: {name: scores[part][name] for name in names} for part, names in chosen.items()}

"""One federated run, from a configuration to a folder of results; read it from top to bottom."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedrsclip_jax import compilation, distributed, workdir
from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import BEST, Checkpoints, Saved
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_zero_shot
from fedrsclip_jax.federated.engine import Diverged
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.files import make_folder, read_json, write_json, write_text
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.ledger import Ledger
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import KEPT, Prompts, imported, keep
from fedrsclip_jax.task import Task, divide


def run(
    config: Config,
    task: Task,
    features: Features,
    folder: Path,
    progress: Progress,
    interrupt: Interrupt,
    *,
    allowed: Sequence[str] = (),
    encode_seconds: float = 0.0,
) -> dict[str, Any]:
    """Trains, evaluates and saves one run, or goes on with it where it was left.

    Args:
      task, features: shared by runs on the same data; see `task.load_task` and `task.encode_images`.
      folder: of results; new, empty, or that of an earlier start of this run.
      interrupt: asked after each dispatch whether to save and leave.
      allowed: what may differ from the earlier start; see `workdir.check_same`.
      encode_seconds: what encoding took, for the summary.

    Returns:
      What `summary.json` says.

    Raises:
      InputError: settings that do not fit the data, the backbone or the earlier start.
      Diverged: prompts or loss are no longer finite; the last sound state is saved, if it is not the first.
      Stopped: as `interrupt` asked; what was done is saved.
    """
    title = f"{config.method.name}, seed {config.seed}"
    with distributed.together():
        clients = divide(config, task, features.readable)
        prompts = imported(config, task.clip_config)
        identity = {
            "backbone": task.digest,
            "data": fingerprint(task.source),
            "partition": clients.digest(),
            "initial_prompts": prompts.digest,
        }
        finished = check_earlier(config, folder, identity, allowed)
    if finished is not None:
        progress.say(f"{title}: finished before")
        return finished
    building: dict[str, float] = {"compile": 0.0, "start": 0.0}
    with compilation.measure(building, "start"):  # how many lanes fit is found out by compiling
        federation = Federation(config, task, features, clients, prompts)

    with Checkpoints(folder, config.checkpoint.keep) as checkpoints, Checkpoints(folder, None, BEST) as best:
        with distributed.together():
            saved = checkpoints.newest()
            ledger = _opened(saved, config, identity, allowed)
            if saved:
                federation.restore(saved.server(federation.server), saved.population)
        distributed.check_same({"checkpoint": str(ledger.round)})
        with distributed.together():  # nothing is refused any more
            checkpoints.go_on_after(ledger.round)
            best.delete_but(ledger.best)
            make_folder(folder)
            ledger.seconds["encode"] += encode_seconds
            ledger.seconds["compile"] += building["compile"]
            _write_start(config, folder, identity, federation, prompts, ledger)
        if saved:
            progress.say(f"{title}: goes on after round {ledger.round}")
        zero_shot = score_zero_shot(features.plain, task.labels, clients, federation.scored, federation.backbone)
        scores: dict[str, Any] = {}

        def save(to: Checkpoints) -> None:
            record = {"config": configuration.to_dict(config), "identity": identity, "ledger": ledger.to_dict()}
            with distributed.together():
                to.save(ledger.round, federation.server, federation.population, record)
                if to is checkpoints and len(best.rounds()) > 1:
                    checkpoints.wait()  # once one is on disk that knows of the best, the others can go
                    best.delete_but(ledger.best)

        def evaluate(complete: bool) -> dict[str, Any]:
            with compilation.measure(ledger.seconds, "evaluate"):
                found = federation.score(complete=complete)
            if not ledger.has_line:
                ledger.write_line(_brief(found))
                with distributed.together():
                    _write_lines(folder, ledger)
                if config.eval.split == "validation" and ledger.best == ledger.round:
                    save(best)
                    with distributed.together():
                        best.wait()  # a checkpoint that knows of a best one finds it on disk
            return found

        with progress.track(title, config.rounds, unit="rounds") as bar:
            while ledger.round < config.rounds:
                try:
                    with compilation.measure(ledger.seconds, "train"):
                        dispatch = federation.advance(
                            ledger.round + 1, _next_pause(config, ledger.round) - ledger.round
                        )
                except Diverged as error:
                    ledger.enter(error.before, federation.traffic.bytes)
                    if ledger.round:
                        save(checkpoints)
                    else:
                        _take_back_start(folder)
                    raise
                ledger.enter(dispatch, federation.traffic.bytes)
                done = dispatch[-1]
                bar.advance_to(
                    ledger.round,
                    loss=done.figures.get("loss", 0.0),
                    accuracy=done.figures.get("accuracy", 0.0),
                    clients_per_second=done.clients / max(done.seconds, 1e-9),
                    bytes_sent=ledger.bytes_sent,
                )
                last = ledger.round == config.rounds
                if last or ledger.round % config.eval.every == 0:
                    scores = evaluate(complete=last)
                stops = max(distributed.exchange(interrupt.exit_code))
                if last or stops or (config.checkpoint.every and ledger.round % config.checkpoint.every == 0):
                    save(checkpoints)
                if stops and not last:
                    with distributed.together():
                        checkpoints.wait()
                    interrupt.leave(f"{title}: saved after round {ledger.round} of {config.rounds}", stops)

        if not scores:  # the run was left between its last round and its summary, or was to go further once
            scores = evaluate(complete=True)
        with distributed.together():
            checkpoints.wait()
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
        "silent_rounds": ledger.silent_rounds,
        "refused_updates": ledger.refused_updates,
        "best_round": ledger.best if config.eval.split == "validation" else None,
        "seed": config.seed,
        "uplink_params_per_client_round": federation.traffic.params,
        "uplink_bytes_per_client_round": federation.traffic.bytes,
        "bytes_sent": ledger.bytes_sent,
        "zero_shot": zero_shot,
        **scores,
        "seconds": {phase: round(spent, 3) for phase, spent in ledger.seconds.items()},
        "client_steps_per_second": ledger.steps / max(ledger.seconds["train"], 1e-9),
        "wasted_lane_share": ledger.wasted / config.rounds,
        "devices": federation.plan.mesh.size,
        "processes": jax.process_count(),
        "clients_per_device": federation.lanes,
        "state_sha256": federation.digest(),
        **{f"{name}_sha256": digest for name, digest in identity.items()},
        "config_sha256": configuration.digest(config),
    }
    with distributed.together():
        write_json(folder / "summary.json", summary)
    return summary


def check_earlier(
    config: Config, folder: Path, identity: dict[str, str], allowed: Sequence[str]
) -> dict[str, Any] | None:
    """The summary of an earlier start of this run, if that came to the end that this one is to come to.

    Args:
      identity: digests by name, or as many as are known yet.

    Raises:
      InputError: the folder holds another run, or this one finished with something that is to be changed.
    """
    if not (folder / "config.json").is_file():
        return None
    was = read_json(folder / "identity.json", *identity) if (folder / "identity.json").is_file() else {}
    digests = {name: (was.get(name, digest), digest) for name, digest in identity.items()}
    changed = workdir.check_same(read_json(folder / "config.json"), configuration.to_dict(config), digests, allowed)
    if not (folder / "summary.json").is_file():
        return None
    summary = read_json(folder / "summary.json", "rounds", "seed", "split", "personalised", "global", "zero_shot")
    if summary["rounds"] != config.rounds:
        return None
    if changed:
        raise InputError(
            f"--allow-changed={','.join(changed)}: the run in {folder} is finished, and what it found is not of these "
            f"settings; set rounds to more than {config.rounds} to go on with them, or name a new folder"
        )
    return summary


def _opened(saved: Saved | None, config: Config, identity: dict[str, str], allowed: Sequence[str]) -> Ledger:
    """The books of a checkpoint, or new ones.

    Raises:
      InputError: the checkpoint is of another run, or further than this one is to go.
    """
    if saved is None:
        return Ledger()
    was = saved.record
    digests = {name: (was["identity"].get(name), digest) for name, digest in identity.items()}
    workdir.check_same(was["config"], configuration.to_dict(config), digests, allowed)
    if saved.round > config.rounds:
        raise InputError(
            f"rounds = {config.rounds}, but the run in this folder is at round {saved.round}; set rounds to at least "
            "that, or name a new folder"
        )
    return Ledger.of(was["ledger"])


def _write_start(
    config: Config,
    folder: Path,
    identity: dict[str, str],
    federation: Federation,
    prompts: Prompts,
    ledger: Ledger,
) -> None:
    """What a run's folder holds from the first round on."""
    write_json(folder / "config.json", configuration.to_dict(config))
    write_json(folder / "identity.json", identity)
    keep(prompts, folder)
    if distributed.first():
        federation.clients.save(folder / "partition.npz")
        (folder / "summary.json").unlink(missing_ok=True)  # of fewer rounds
    _write_lines(folder, ledger)


def _take_back_start(folder: Path) -> None:
    """Leaves nothing of a run that has no sound round, so that it may be tried again in the same place."""
    if distributed.first():
        # What says that there is a run goes last: cut off before, this is gone on with.
        for name in (KEPT, "partition.npz", "metrics.jsonl", "identity.json", "config.json"):
            (folder / name).unlink(missing_ok=True)


def _write_lines(folder: Path, ledger: Ledger) -> None:
    write_text(folder / "metrics.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in ledger.lines))


def _next_pause(config: Config, number: int) -> int:
    """The next round after `number` that ends with an evaluation or a checkpoint."""
    steps = [every for every in (config.eval.every, config.checkpoint.every) if every]
    return min(config.rounds, *((number // every + 1) * every for every in steps))


def _brief(scores: dict[str, Any]) -> dict[str, Any]:
    """What a line of `metrics.jsonl` keeps of the scores."""
    chosen = {"global": ("accuracy", "macro_f1", "ece"), "personalised": ("mean", "std", "worst_decile")}
    return {part: {name: scores[part][name] for name in names} for part, names in chosen.items()}

"""Many runs that differ in a few keys, as few programs as possible, and what is to be learned from them.

Runs that differ only in values (rates, weights, seeds, and partitions, whose padded sizes are made to agree) are one
program: see `federated.together`. What changes a shape (tokens, method, clients) makes another group, which is compiled
once, too. Each run has a folder as `fedrsclip train` would leave it, and goes on where it stopped.
"""

import dataclasses
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from fedrsclip_jax import compilation, workdir
from fedrsclip_jax.config import Config, digest, to_dict
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.experiment import Run, check_earlier
from fedrsclip_jax.federated.engine import Diverged
from fedrsclip_jax.federated.mesh import MOST_LANES, MOST_LANES_OF_CPU
from fedrsclip_jax.federated.together import Together, devices_of_a_run, signature
from fedrsclip_jax.files import read_json, write_json
from fedrsclip_jax.grid import Grid
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.prompts import imported
from fedrsclip_jax.report.sweep import write_results
from fedrsclip_jax.task import Task, divide, encode_images, load_task

# Keys that change no shape, or only ones that are made to agree.
VALUES = (
    "seed",
    "init_from",
    "dropout",
    "method.pacl_weight",
    "method.cmfac_weight",
    "method.contrastive_weight",
    "method.temperature",
    "local.learning_rate",
    "local.momentum",
    "local.weight_decay",
    "local.proximal_weight",
    "server.learning_rate",
    "partition.kind",
    "partition.alpha",
    "partition.classes_per_client",
    "partition.min_examples",
)
# Runs of one program on a device: more of them are several programs, one after another.
MOST_RUNS, MOST_RUNS_OF_CPU = MOST_LANES, 4 * MOST_LANES_OF_CPU


def sweep(
    grid: Grid, folder: Path, progress: Progress, interrupt: Interrupt, allowed: Sequence[str] = ()
) -> dict[str, Any]:
    """Runs all rows with all their seeds, or goes on with what an earlier start has left undone.

    `folder/runs/` holds a folder a run; `results.csv`, `table.md` and `pictures/` what they show.

    Args:
      interrupt, allowed: see `experiment.run`.

    Returns:
      What `sweep.json` says: the rows with their results.

    Raises:
      InputError: something does not fit; if nothing is saved yet, nothing is left in `folder`.
      Stopped: as `interrupt` asked.
    """
    if jax.process_count() > 1:
        raise InputError("sweep is the work of one process; start it without FEDRSCLIP_PROCESSES")
    if grid.base.spmd.features == "streamed":
        raise InputError("spmd.features = 'streamed': runs of a sweep share images on the devices; leave it at 'auto'")
    workdir.check(folder)
    if (folder / "config.json").is_file() and "sweep" not in read_json(folder / "config.json"):
        raise InputError(f"--workdir: {folder} holds a single run; name a new folder, so that it is not overwritten")
    _check_same_images(grid)
    task = load_task(grid.base)
    homes = {
        (row.label, run.seed): folder / "runs" / f"{_slug(row.label)}-seed{run.seed}"
        for row in grid.rows
        for run in row.runs
    }
    if len(set(homes.values())) < len(homes):
        raise InputError("two rows of the sweep would have one folder; give them sweep.labels that differ in letters")
    for row in grid.rows:  # what does not fit is refused before the images are encoded, which can take long
        find_method(row.runs[0].method.name)
        for run in row.runs:
            divide(run, task)
            known = {"backbone": task.digest, "data": fingerprint(task.source)}
            check_earlier(run, homes[row.label, run.seed], known, allowed)
        task.backbone(row.runs[0].method)
        task.context_start(row.runs[0].method)
        imported(row.runs[0], task.clip_config)
    with workdir.claim(folder) as dead:
        if dead:
            progress.say(f"{folder}: taken over from {dead}, which is dead")
        write_json(folder / "config.json", {**to_dict(grid.base), "sweep": _written(grid)})
        names = sorted({row.runs[0].method.name for row in grid.rows})
        features = encode_images(grid.base, task, progress, interrupt, names)
        programs = 0
        for group in _groups([(homes[row.label, run.seed], run) for row in grid.rows for run in row.runs]):
            programs += _run_group(group, task, features, progress, interrupt, allowed)
        result = _tell(grid, homes, programs)
        write_json(folder / "sweep.json", result)
        write_results(result, folder)
        return result


def _check_same_images(grid: Grid) -> None:
    """All rows use the base's images and backbone: what is encoded once serves all of them."""
    for row in grid.rows:
        for key in row.values:
            if key.startswith("data.") or key in ("backbone", "dtype", "method.patch_grid"):
                raise InputError(
                    f"config key {key!r} cannot be varied in a sweep, whose runs share images and features"
                )


def _groups(runs: Sequence[tuple[Path, Config]]) -> list[list[tuple[Path, Config]]]:
    """Runs whose configurations differ in `VALUES` alone, in their order, in pieces that fit side by side."""
    groups: dict[str, list[tuple[Path, Config]]] = {}
    for folder, config in runs:
        same = to_dict(config)
        for key in VALUES:
            part = same
            *outer, last = key.split(".")
            for name in outer:
                part = part[name]
            part.pop(last)
        groups.setdefault(repr(same), []).append((folder, config))
    on_cpu = jax.default_backend() == "cpu"
    most = (MOST_RUNS_OF_CPU if on_cpu else MOST_RUNS) * len(jax.devices())
    return [members[i : i + most] for members in groups.values() for i in range(0, len(members), most)]


def _run_group(
    group: Sequence[tuple[Path, Config]],
    task: Task,
    features: Features,
    progress: Progress,
    interrupt: Interrupt,
    allowed: Sequence[str],
) -> int:
    """Trains, evaluates and saves some runs side by side; how many programs that took."""
    group = [(folder, config) for folder, config in group if not _mark(folder).is_file()]
    if not group:
        return 0
    pending = [folder for folder, _ in group if not (folder / "summary.json").is_file()]
    share, lanes = _spread(len(pending) or 1, group[0][1])
    programs = 0
    with ExitStack() as stack:
        runs: list[Run] = []
        for folder, config in group:
            spmd = dataclasses.replace(config.spmd, devices=share, clients_per_device=lanes)
            own = dataclasses.replace(config, spmd=spmd)
            beside = next((run for run in runs if run.finished is None), None)
            run = Run(own, task, features, folder, progress, allowed=allowed, beside=beside)
            runs.append(stack.enter_context(run))
        left = [run for run in runs if run.finished is None]
        while left:
            # Those that stand farthest back, as after an interruption, catch up first.
            start = min(run.ledger.round for run in left)
            behind = [run for run in left if run.ledger.round == start]
            ahead = [run.ledger.round for run in left if run.ledger.round > start]
            alike: dict[Any, list[Run]] = {}
            for run in behind:
                alike.setdefault(signature(run.federation), []).append(run)
            for together in alike.values():
                programs += 1
                _advance(together, min([run.config.rounds for run in together] + ahead), progress, interrupt)
            left = [run for run in left if run.ledger.round < run.config.rounds and not _mark(run.folder).is_file()]
        for run in runs:
            if run.finished is None and not _mark(run.folder).is_file():
                run.summarise()
    return programs


def _advance(runs: list[Run], until: int, progress: Progress, interrupt: Interrupt) -> None:
    """Rounds of runs that stand at the same one, side by side."""
    together, alive = Together([run.federation for run in runs]), list(runs)
    title = f"{len(runs)} runs of {runs[0].config.method.name}"
    with progress.track(title, until, unit="rounds") as bar:
        number = runs[0].ledger.round
        while number < until and alive:
            spent = {"compile": 0.0, "train": 0.0}
            with compilation.measure(spent, "train"):
                answers = together.advance(number + 1, min(until, min(run.pause for run in alive)) - number)
            for run, answer in zip(runs, answers, strict=True):
                if run not in alive:
                    continue
                for phase, seconds in spent.items():
                    run.ledger.seconds[phase] += seconds / len(alive)
                if isinstance(answer, Diverged):
                    run.give_up(answer)
                    write_json(_mark(run.folder), {"reason": str(answer)})
                    alive.remove(run)
                else:
                    run.enter(answer)
            if not alive:
                break
            number = alive[0].ledger.round
            bar.advance_to(number, loss=max(run.ledger.figures.get("loss") or 0.0 for run in alive))
            if interrupt.exit_code and number < until:
                for run in alive:
                    run.save()
                interrupt.leave(f"{title}: saved after round {number} of {until}")


def _spread(runs: int, config: Config) -> tuple[int, int]:
    """Devices over which each run's clients go, and lanes of each run on a device."""
    devices = config.spmd.devices or len(jax.devices())
    share = devices_of_a_run(runs, devices)
    if config.spmd.clients_per_device or config.spmd.ordered_reduce:
        return share, config.spmd.clients_per_device
    a_device = max(runs * share // devices, 1)
    most = MOST_LANES_OF_CPU if jax.default_backend() == "cpu" else MOST_LANES
    return share, max(most // a_device, 1)


def _tell(grid: Grid, homes: dict[tuple[str, int], Path], programs: int) -> dict[str, Any]:
    rows = []
    for row in grid.rows:
        runs = []
        for run in row.runs:
            home = homes[row.label, run.seed]
            summary = read_json(home / "summary.json") if (home / "summary.json").is_file() else None
            reason = None if summary else read_json(_mark(home))["reason"]
            runs.append({"seed": run.seed, "folder": f"runs/{home.name}", "summary": summary, "diverged": reason})
        rows.append({"label": row.label, "values": row.values, "runs": runs})
    return {
        "varied": list(grid.varied),
        "split": grid.base.eval.split,
        "seeds": [run.seed for run in grid.rows[0].runs],
        "config_sha256": digest(grid.base),
        "programs": programs,
        "rows": rows,
    }


def _written(grid: Grid) -> dict[str, Any]:
    return {"rows": [{"label": row.label, **row.values} for row in grid.rows], "seeds": len(grid.rows[0].runs)}


def _mark(folder: Path) -> Path:
    """Says of a run in a sweep that it diverged, which does not stop the others."""
    return folder / "diverged.json"


def _slug(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=_-" else "_" for letter in label)[:100]

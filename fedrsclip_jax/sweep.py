"""Many runs that differ in a few keys, as few programs as possible, and what is to be learned from them.

Runs that differ only in values (rates, weights, seeds, and partitions, whose padded sizes are made to agree) are one
program: see `federated.together`. What changes a shape (tokens, method, clients) makes another group, which is compiled
once, too. Each run has a folder as `fedrsclip train` would leave it, and goes on where it stopped.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax

from fedrsclip_jax import compilation, events, formats, remarks, workdir
from fedrsclip_jax.config import Config, digest, to_dict
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.sources import fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.events import Events
from fedrsclip_jax.experiment import Run, check_earlier, check_settings
from fedrsclip_jax.federated.engine import Diverged
from fedrsclip_jax.federated.mesh import MOST_LANES, MOST_LANES_OF_CPU, make_mesh
from fedrsclip_jax.federated.together import Together, devices_of_a_run, signature
from fedrsclip_jax.grid import Grid
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.ledger import read_lines
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.progress import Progress, Whole
from fedrsclip_jax.report.page import FILE, remove_report, write_report
from fedrsclip_jax.report.sweep import write_results
from fedrsclip_jax.task import Task, encode_images, load_task

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
# Keys that images, features and zero-shot depend on, which all runs share; those of `data` too.
_OF_ALL = ("backbone", "backbone_templates", "dtype", "eval.base_to_new", "method.patch_grid")
_LONGEST_SLUG = 100
# Runs of one program on a device: more of them are several programs, one after another.
MOST_RUNS, MOST_RUNS_OF_CPU = MOST_LANES, 4 * MOST_LANES_OF_CPU


class Member(NamedTuple):
    """A run of a sweep: where it lies, what it is, the digests that are known before images are encoded, its row."""

    folder: Path
    config: Config
    known: dict[str, str]
    label: str = ""


class Plan(NamedTuple):
    """What a sweep is going to run, all of which fits.

    Attributes:
      task: images and backbone, of all runs.
      homes: folder of each run, by label and seed.
      groups: runs that are one program each.
    """

    task: Task
    homes: dict[tuple[str, int], Path]
    groups: list[list[Member]]


def plan(grid: Grid, folder: Path, allowed: Sequence[str] = ()) -> Plan:
    """Finds out whether a sweep can be run in `folder`, which is left as it is; no image is encoded.

    Raises:
      InputError: something does not fit.
    """
    if jax.process_count() > 1:
        raise InputError("sweep is the work of one process; start it without FEDRSCLIP_PROCESSES")
    if grid.base.spmd.features == "streamed":
        raise InputError("spmd.features = 'streamed': runs of a sweep share images on the devices; leave it at 'auto'")
    workdir.check(folder)
    _check_same_images(grid)
    make_mesh(grid.base.spmd.devices)
    task = load_task(grid.base)
    homes = _homes(grid, folder)
    _check_earlier(grid, task, folder, allowed)
    members = [
        Member(homes[row.label, run.seed], run, check_settings(run, task), row.label)
        for row in grid.rows
        for run in row.runs
    ]
    for member in members:
        check_earlier(member.config, member.folder, member.known, allowed)
    return Plan(task, homes, _groups(members))


def sweep(
    grid: Grid,
    folder: Path,
    progress: Progress,
    interrupt: Interrupt,
    allowed: Sequence[str] = (),
    *,
    tensorboard: bool = False,
    report: bool = True,
) -> dict[str, Any]:
    """Runs all rows with all their seeds, or goes on with what an earlier start has left undone.

    `folder/runs/` holds a folder a run; `results.csv`, `table.md`, `pictures/` and `report.html` what they show.

    Args:
      interrupt, allowed: see `experiment.run`.
      tensorboard: whether to write event files, below `folder/tensorboard/` a folder a run.
      report: whether to draw `report.html`, of the sweep and of each run; otherwise older ones are removed, as they
        may show less than what has been run.

    Returns:
      What `sweep.json` says: the rows with their results.

    Raises:
      InputError: something does not fit; if nothing is saved yet, nothing is left in `folder`.
      Stopped: as `interrupt` asked.
    """
    if tensorboard:
        events.check_installed()
    draw = write_report if report else remove_report
    task, homes, groups = plan(grid, folder, allowed)
    whole = Whole(sum(member.config.rounds for group in groups for member in group))
    with workdir.claim(folder, progress.say):
        for sentence in remarks.of_task(grid.base, task):
            progress.say(sentence)
        methods = [find_method(row.runs[0].method.name) for row in grid.rows]
        features = encode_images(grid.base, task, progress, interrupt, methods)
        formats.write(folder / "identity.json", _identity(task))
        formats.write(folder / "config.json", {**to_dict(grid.base), "sweep": _written(grid)})
        programs = 0
        for number, group in enumerate(groups):
            if number and interrupt.exit_code:
                interrupt.leave(f"{number} of {len(groups)} groups of runs are done")
            part = progress.program(number + 1, len(groups), whole)
            written = folder / events.FOLDER if tensorboard else None
            programs += _run_group(group, task, features, part, interrupt, allowed, written, draw)
        result = _tell(grid, homes, programs)
        formats.write(folder / "sweep.json", result)
        write_results(result, folder)
        draw(folder)
        return result


def _homes(grid: Grid, folder: Path) -> dict[tuple[str, int], Path]:
    """By label and seed: the folder of each run."""
    homes = {
        (row.label, run.seed): folder / "runs" / f"{_slug(row.label)}-seed{run.seed}"
        for row in grid.rows
        for run in row.runs
    }
    if len(set(homes.values())) < len(homes):
        raise InputError(
            "two rows of the sweep would have one folder; give them sweep.labels that differ in the first "
            f"{_LONGEST_SLUG} letters"
        )
    return homes


def _check_earlier(grid: Grid, task: Task, folder: Path, allowed: Sequence[str]) -> None:
    """Refuses a folder that holds anything but an earlier start of this sweep, which may have grown since."""
    if not (folder / "config.json").is_file():
        return
    before = formats.read(folder / "config.json")
    earlier = before.pop("sweep", None)
    if earlier is None:
        raise InputError(f"--workdir: {folder} holds a single run; name a new folder, so that it is not overwritten")
    identity = _identity(task)
    was = formats.read(folder / "identity.json", *identity) if (folder / "identity.json").is_file() else {}
    digests = {name: (was.get(name, digest), digest) for name, digest in identity.items()}
    of_runs = ("partition", "initial_prompts")
    may_differ = [*(key for key in allowed if key not in of_runs), *grid.varied]
    workdir.check_same(before, to_dict(grid.base), digests, may_differ, before.version)
    now = _written(grid)
    missing = [row["label"] for row in earlier["rows"] if row not in now["rows"]]
    if missing or earlier["seeds"] > now["seeds"]:
        lacks = f"the row {missing[0]!r}" if missing else f"{earlier['seeds']} seeds"
        raise InputError(
            f"--workdir: {folder} holds another sweep, with {lacks}; to go on with it, leave what it has and add rows, "
            "seeds or rounds, or name a new folder"
        )


def _identity(task: Task) -> dict[str, str]:
    return {"backbone": task.digest, "data": fingerprint(task.images)}


def _check_same_images(grid: Grid) -> None:
    """All rows use the base's images and backbone: what is encoded once serves all of them."""
    for row in grid.rows:
        for key in row.values:
            if key.startswith("data.") or key in _OF_ALL:
                raise InputError(
                    f"config key {key!r} cannot be varied in a sweep, whose runs share images and features"
                )


def _groups(members: Sequence[Member]) -> list[list[Member]]:
    """Runs whose configurations differ in `VALUES` alone, in their order, in pieces that fit side by side."""
    groups: dict[str, list[Member]] = {}
    for member in members:
        same = to_dict(member.config)
        for key in VALUES:
            part = same
            *outer, last = key.split(".")
            for name in outer:
                part = part[name]
            part.pop(last)
        groups.setdefault(repr(same), []).append(member)
    a_device = MOST_RUNS_OF_CPU if jax.default_backend() == "cpu" else MOST_RUNS
    pieces = []
    for alike in groups.values():
        most = a_device * make_mesh(alike[0].config.spmd.devices).size
        pieces += [alike[i : i + most] for i in range(0, len(alike), most)]
    return pieces


def _run_group(
    group: Sequence[Member],
    task: Task,
    features: Features,
    progress: Progress,
    interrupt: Interrupt,
    allowed: Sequence[str],
    event_files: Path | None,
    draw: Callable[[Path], object],
) -> int:
    """Trains, evaluates and saves some runs side by side, and draws their pages; in how many programs."""
    whole = progress.whole
    assert whole is not None
    pending = []
    for each in group:
        if _gave_up(each):
            whole.skip(each.config.rounds)
        elif check_earlier(each.config, each.folder, each.known, allowed) is None:
            pending.append(each)
        else:
            whole.skip(each.config.rounds)
            if draw is remove_report or not (each.folder / FILE).is_file():
                draw(each.folder)
            if event_files is not None:
                with Events(event_files / each.folder.name) as written:
                    written.follow(read_lines(each.folder))
    if not pending:
        return 0
    share, lanes = _spread(len(pending), group[0].config)
    devices = [*make_mesh(group[0].config.spmd.devices).devices.flat]
    signatures = set()
    with ExitStack() as stack:
        runs: list[Run] = []
        files: list[Events] = []
        for folder, config, *_ in pending:
            # What does not fit beside each other is refused in a line when it is put on the devices.
            spmd = dataclasses.replace(config.spmd, devices=share, clients_per_device=lanes, features="resident")
            own = dataclasses.replace(config, spmd=spmd)
            run = Run(own, task, features, folder, progress, allowed=allowed, beside=runs[0] if runs else None)
            runs.append(stack.enter_context(run))
            whole.skip(run.ledger.round)
            place = None if event_files is None else event_files / folder.name
            files.append(stack.enter_context(Events(place)))

        def follow() -> None:
            for run, file in zip(runs, files, strict=True):
                file.follow(run.ledger.lines)

        left = list(runs)
        while left:
            # Those that stand farthest back, as after an interruption, catch up first.
            start = min(run.ledger.round for run in left)
            behind = [run for run in left if run.ledger.round == start]
            ahead = [run.ledger.round for run in left if run.ledger.round > start]
            alike: dict[Any, list[Run]] = {}
            for run in behind:
                alike.setdefault(signature(run.federation), []).append(run)
            signatures |= alike.keys()
            for together in alike.values():
                until = min([run.config.rounds for run in together] + ahead)
                fit = not group[0].config.spmd.clients_per_device
                _advance(together, until, devices, fit, progress, interrupt, follow)
                if interrupt.exit_code:
                    break
            left = [run for run in left if run.ledger.round < run.config.rounds and not _mark(run.folder).is_file()]
            if left and interrupt.exit_code:
                for run in left:
                    run.save()
                least = min(run.ledger.round for run in left)
                title = f"{len(left)} runs of {left[0].config.method.name}"
                interrupt.leave(f"{title}: saved after round {least} of {left[0].config.rounds}")
        for run in runs:
            if _mark(run.folder).is_file():
                remove_report(run.folder)
            else:
                run.summarise()
                draw(run.folder)
        follow()
    return len(signatures)


def _advance(
    runs: list[Run],
    until: int,
    devices: list[jax.Device],
    fit: bool,
    progress: Progress,
    interrupt: Interrupt,
    follow: Callable[[], None],
) -> None:
    """Rounds of runs that stand at the same one, side by side, until they are there or somebody interrupts."""
    together, alive = Together([run.federation for run in runs], devices), list(runs)
    if fit:
        together.fit_lanes()
    title = f"{len(runs)} runs of {runs[0].config.method.name}"
    number = runs[0].ledger.round
    with progress.track(title, until, unit="rounds", done=number, waits="compiling", weight=len(runs)) as bar:
        while number < until and alive:
            spent = {"compile": 0.0, "train": 0.0}
            with compilation.measure(spent, "train"):
                answers = together.advance(number + 1, min(until, min(run.pause for run in alive)) - number)
            each = {phase: seconds / len(alive) for phase, seconds in spent.items()}
            for run, answer in zip(runs, answers, strict=True):
                if run not in alive:
                    continue
                for phase, seconds in each.items():
                    run.ledger.seconds[phase] += seconds
                if isinstance(answer, Diverged):
                    run.give_up(answer)
                    own = {"config": to_dict(run.config), "identity": run.identity}
                    formats.write(_mark(run.folder), {"reason": str(answer), **own})
                    alive.remove(run)
                else:
                    run.enter(answer)
            follow()
            if not alive:
                break
            number = alive[0].ledger.round
            bar.advance_to(number, loss=max(run.ledger.figures.get("loss") or 0.0 for run in alive))
            if interrupt.exit_code:
                break


def _gave_up(member: Member) -> bool:
    """Whether an earlier start of the very same run diverged; the mark of another one is taken away."""
    mark = _mark(member.folder)
    if not mark.is_file():
        return False
    was = formats.read(mark, "reason", "config", "identity")
    digests = {name: (was["identity"].get(name), digest) for name, digest in member.known.items()}
    try:
        workdir.check_same(was["config"], to_dict(member.config), digests, (), was.version)
    except InputError:
        mark.unlink()
        return False
    return True


def _spread(runs: int, config: Config) -> tuple[int, int]:
    """Devices over which each run's clients go, and lanes of each run on a device."""
    devices = make_mesh(config.spmd.devices).size
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
            summary = formats.read(home / "summary.json") if (home / "summary.json").is_file() else None
            reason = None if summary else formats.read(_mark(home))["reason"]
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
    rows = [{"label": row.label, **row.values} for row in grid.rows]
    return json.loads(json.dumps({"rows": rows, "seeds": len(grid.rows[0].runs)}))


def _mark(folder: Path) -> Path:
    """Says of a run in a sweep that it diverged, which does not stop the others."""
    return folder / "diverged.json"


def _slug(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in ".=_-" else "_" for letter in label)[:_LONGEST_SLUG]

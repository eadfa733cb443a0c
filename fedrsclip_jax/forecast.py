"""What a run would do and what it would take: counted where that is possible, else measured on its own programs.

Nothing is written. Cohorts, steps and bytes are those of the run itself. Seconds are those of a few rounds, an
evaluation and a batch of images on this machine, times how many there will be.
"""

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax import compilation, distributed, remarks
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.comparison import Plan, plan
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.features import Features, bytes_of
from fedrsclip_jax.federated.client import LocalPlan
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort, lay_out
from fedrsclip_jax.federated.mesh import platform_of
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.grid import Grid
from fedrsclip_jax.methods import TITLES
from fedrsclip_jax.progress import Progress, duration
from fedrsclip_jax.prompts import imported
from fedrsclip_jax.sweep import plan as plan_sweep
from fedrsclip_jax.task import Task, divide, encode_images, features_width, images_to_encode, time_encoding

SECONDS = 2.0  # that rounds, and images, are timed for
_MOST_COUNTED = 10_000  # clients whose sizes are looked at; of more, those of the first round


@dataclass(frozen=True)
class Count:
    """What a run will do, by its own draws.

    Attributes:
      steps: local steps of all clients in all rounds.
      up, down: bytes from and to all clients; every client that is drawn is sent the shared prompt, and those that
        answer send its change.
      wasted: share of lane-steps without work, averaged over rounds.
      taking_part: clients that ever answer, each of whom has private prompts to be kept.
    """

    steps: int
    up: int
    down: int
    wasted: float
    taking_part: int


@dataclass(frozen=True)
class Trial:
    """What a method's first rounds have shown.

    Attributes:
      platform, devices, lanes: where clients train, and how many at a time on a device.
      params, bytes: that a client sends in a round.
      step, evaluation, last_evaluation: seconds each, of all clients together.
      compile: seconds, where no earlier run has left the compiled program.
      device: bytes on a device by what they hold; `working` is the compiler's, the others are sizes of arrays.
      server, private: bytes of a checkpoint: of the server, and of each client that took part.
    """

    platform: str
    devices: int
    lanes: int
    params: int
    bytes: int
    step: float
    evaluation: float
    last_evaluation: float
    compile: float
    device: dict[str, int]
    server: int
    private: int


@dataclass(frozen=True)
class Forecast:
    """Everything that is shown.

    Attributes:
      folder: of the results, if there were any.
      plan: the runs.
      kinds: of each run, in the plan's order: its method, or the rows of a sweep that are one program.
      sizes: training images of each client, or of those of a round if there are very many.
      pooled: images that are scored.
      counts: of each run, in the plan's order.
      done: rounds of each run that an earlier start has done.
      trials: by kind.
      width: numbers that are kept of an image.
      to_encode, image, encoder: images that are not in the cache, seconds for each, and to compile their program.
      host: bytes that this process has needed at most so far; None where the system does not say.
    """

    folder: Path
    plan: Plan
    kinds: list[str]
    sizes: np.ndarray
    pooled: int
    counts: list[Count]
    done: list[int]
    trials: dict[str, Trial]
    width: int
    to_encode: int
    image: float
    encoder: float
    host: int | None

    @property
    def seconds(self) -> dict[str, float]:
        """What is left to do, by phase."""
        spent = {"encode": self.encoder + self.to_encode * self.image if self.to_encode else 0.0}
        spent |= {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        pending = set()
        for (config, _), kind, count, done in zip(self.plan.runs, self.kinds, self.counts, self.done, strict=True):
            if done == config.rounds:
                continue
            trial, every = self.trials[kind], config.eval.every
            pending.add(kind)
            spent["train"] += trial.step * count.steps * (config.rounds - done) / config.rounds
            between = (config.rounds - 1) // every - done // every
            spent["evaluate"] += between * trial.evaluation + trial.last_evaluation
        spent["compile"] = sum(self.trials[name].compile for name in pending)
        return spent


def forecast(config: Config, folder: Path, progress: Progress, allowed: Sequence[str] = ()) -> Forecast:
    """Looks at what `comparison.compare` would do with the same arguments, and writes nothing.

    Raises:
      InputError: what would refuse the run itself before its first round.
    """
    planned = plan(config, folder)
    kinds = [run.method.name for run, _ in planned.runs]
    return _look(config, folder, planned, planned.check_earlier(allowed), kinds, progress)


def forecast_sweep(grid: Grid, folder: Path, progress: Progress, allowed: Sequence[str] = ()) -> Forecast:
    """Looks at what `sweep.sweep` would do with the same arguments, one run after another, and writes nothing.

    Raises:
      InputError: what would refuse the sweep itself before its first round.
    """
    task, _, groups = plan_sweep(grid, folder, allowed)
    runs, kinds = [], []
    for group in groups:
        labels = [*dict.fromkeys(member.label for member in group)]
        kind = labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"
        kinds += [f"{kind}, piece {kinds.count(kind)}" if kind in kinds else kind] * len(group)
        runs += [(member.config, member.folder) for member in group]
    # Patches are encoded where any row's method needs them.
    methods = tuple(dict.fromkeys(config.method.name for config, _ in runs))
    planned = Plan(task, groups[0][0].known, runs)
    config = dataclasses.replace(grid.base, baselines=methods)
    return _look(config, folder, planned, planned.check_earlier(allowed), kinds, progress)


def _look(
    config: Config, folder: Path, planned: Plan, finished: Sequence[Any], kinds: list[str], progress: Progress
) -> Forecast:
    """Counts and measures; `finished` says of each run whether there is nothing left to do."""
    task = planned.task
    timed = {"image": 0.0, "compile": 0.0}
    with distributed.together():
        to_encode = images_to_encode(config, task)
    to_encode = max(distributed.exchange(to_encode))  # hosts may have caches of their own
    if to_encode:
        progress.say(f"encoding some of {to_encode} images, to see how long that takes")
        with distributed.together():
            timed = time_encoding(config, task, SECONDS)
        features = _stand_in(config, task)
    else:
        features = encode_images(config, task, Progress(quiet=True))
    counts, done, trials = [], [], {}
    first = divide(planned.runs[0][0], task, features.readable)
    for (alone, own), name, before in zip(planned.runs, kinds, finished, strict=True):
        clients = divide(alone, task, features.readable)
        if name not in trials:
            progress.say(f"training some rounds of {name}, to see how long that takes")
            trials[name] = _try(alone, task, features, clients)
        counts.append(_count(alone, clients, trials[name]))
        done.append(alone.rounds if before else _done(own))
    several = first.num_clients > _MOST_COUNTED
    ids = draw_cohort(config.seed, 1, first.num_clients, config.cohort if several else 0)
    return Forecast(
        folder,
        planned,
        kinds,
        first.counts(ids, "train"),
        len(first.pooled),
        counts,
        done,
        trials,
        features_width(config, task),
        to_encode,
        timed["image"],
        timed["compile"],
        _host_memory(),
    )


def _stand_in(config: Config, task: Task) -> Features:
    """Features as large as the real ones, which are not there yet; what is done with them takes as long."""
    parts = features_width(config, task) // task.clip_config.embed
    plain = np.random.default_rng(0).standard_normal((len(task.source), parts, task.clip_config.embed), np.float32)
    plain /= np.linalg.norm(plain, axis=2, keepdims=True)
    plain = plain.reshape(len(plain), -1)
    views = config.data.views
    return Features(plain, (plain,) * views, np.ones(len(plain), bool))


def _try(alone: Config, task: Task, features: Features, clients: Clients) -> Trial:
    """Builds the run's own programs and times them; a step size of zero, which changes no program, learns nothing."""
    still = dataclasses.replace(alone, local=dataclasses.replace(alone.local, learning_rate=0.0))
    spent: dict[str, float] = dict.fromkeys(("compile", "start", "first", "train", "evaluate", "last"), 0.0)
    with compilation.measure(spent, "start"):
        federation = Federation(still, task, features, clients, imported(still, task.clip_config))
    with compilation.measure(spent, "first"):
        timed = federation.advance(1, 1)
    number, steps, seconds = 1, timed[0].steps, spent["first"]
    if alone.rounds > 1:
        steps = 0
        while number < alone.rounds and _of_first(spent["train"]) < SECONDS:
            with compilation.measure(spent, "train"):
                timed = federation.advance(number + 1, alone.rounds - number)
            number, steps = number + len(timed), steps + sum(done.steps for done in timed)
        seconds = spent["train"]
    with compilation.measure(spent, "evaluate"):
        federation.score(complete=False)
    with compilation.measure(spent, "last"):
        federation.score(complete=True)
    needed = federation.compiled().memory_analysis()
    at_a_time = -(-(alone.cohort or clients.num_clients) // federation.plan.mesh.size)
    device = {
        "features": _bytes(federation.data),
        "text tower": _bytes(federation.backbone),
        "image tower": _bytes(task.clip.vision),
        "prompts": _bytes(federation.server) + federation.population.row_bytes * at_a_time,
        "working": needed.temp_size_in_bytes if needed else 0,
    }
    return Trial(
        platform_of(federation.plan.mesh),
        federation.plan.mesh.size,
        federation.lanes,
        federation.traffic.params,
        federation.traffic.bytes,
        seconds / max(steps, 1),
        spent["evaluate"],
        spent["last"],
        spent["compile"],
        device,
        _bytes(federation.server),
        federation.population.row_bytes,
    )


def _of_first(seconds: float) -> float:
    """The first process's, so that all of them do the same."""
    return distributed.exchange(seconds)[0]


def _bytes(tree: Any) -> int:
    leaves = jax.tree.leaves(nnx.state(tree) if isinstance(tree, nnx.Module) else tree)
    return int(sum(leaf.nbytes for leaf in leaves))


def _count(config: Config, clients: Clients, trial: Trial) -> Count:
    local, everyone = LocalPlan.of(config), config.cohort in (0, clients.num_clients)
    steps = answering = drawn = 0
    wasted, ever = 0.0, set()
    each, idle = np.zeros(0, np.int64), 0.0
    for number in range(1, config.rounds + 1):
        cohort = draw_cohort(config.seed, number, clients.num_clients, config.cohort)
        if number == 1 or not everyone:
            each = np.asarray(local.steps(clients.counts(cohort, "train")))
            idle = lay_out(each, trial.devices, trial.lanes).wasted
        answer = draw_answering(config.seed, number, cohort, config.dropout)
        steps, wasted = steps + int(each.sum()), wasted + idle
        answering, drawn = answering + int(answer.sum()), drawn + len(cohort)
        ever.update(cohort[answer].tolist())
    return Count(steps, answering * trial.bytes, drawn * trial.bytes, wasted / config.rounds, len(ever))


def _done(folder: Path) -> int:
    with Checkpoints(folder) as kept:
        return max(kept.rounds(), default=0)


def _host_memory() -> int | None:
    """Bytes that this process has needed at most so far; None where the system does not say."""
    with suppress(ImportError):
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else 1024 * most
    return None


def show(told: Forecast, console: Console) -> None:
    """Tables of what would run and what it would take, no wider than 80 columns."""
    first, _ = told.plan.runs[0]
    task = told.plan.task
    for sentence in remarks.of_task(first, task):
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(_table("what would run", ["", ""], _what(told, first)))
    by_method = [_by_method(told, name) for name in told.trials]
    several = "; of one run, that of the first seed" if first.seed != told.plan.runs[-1][0].seed else ""
    heads = ["", "steps a round", "in all", "idle lanes", "a client sends", "all clients send", "and are sent"]
    console.print(_table(f"local steps and bytes{several}", heads, by_method))
    console.print(_table("memory and disk", ["", "", ""], _memory(told)))
    console.print(_table("time on this machine, of what is left to do", ["", "", ""], _time(told)))
    console.print(f"nothing was written; the results would be in {told.folder}", highlight=False, soft_wrap=True)


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Numbers stand to the right under their headings; words, which have none, to the left."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(heads))
    for head in heads:
        table.add_column(head, justify="right" if head else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _what(told: Forecast, first: Config) -> list[tuple[str, str]]:
    source, trial = told.plan.task.source, next(iter(told.trials.values()))
    low, middle, high = np.percentile(told.sizes, [0, 50, 100])
    kind, runs = first.partition.kind, len(told.plan.runs)
    finished = sum(done == config.rounds for (config, _), done in zip(told.plan.runs, told.done, strict=True))
    halfway = sum(0 < done < config.rounds for (config, _), done in zip(told.plan.runs, told.done, strict=True))
    before = [f"{count} {word}" for count, word in ((finished, "finished"), (halfway, "to go on with")) if count]
    seeds = len({config.seed for config, _ in told.plan.runs})
    methods = ", ".join(TITLES.get(name, name) for name in told.trials)
    answer = f", of whom {100 * first.dropout:g} % fail to answer" if first.dropout else ""
    saves = f"every {first.checkpoint.every}" if first.checkpoint.every else "at the end"
    return [
        ("data set", f"{first.data.source}, {len(source.class_names)} classes, {len(source):,} images"),
        ("backbone", f"{first.backbone} ({told.plan.task.digest[:12]}), {first.dtype}"),
        ("clients", f"{first.partition.clients:,} by {kind}, first seed: {told.pooled:,} images scored"),
        ("images of a client", f"{low:.0f} to {high:.0f} to train on, median {middle:.0f}"),
        ("cohort", f"{first.cohort or first.partition.clients:,} clients a round{answer}"),
        ("rounds", f"{first.rounds:,}, scored every {first.eval.every}, saved {saves}"),
        ("runs", f"{runs}: {methods}; seeds {seeds}" + "".join(f"; {part}" for part in before)),
        ("devices", f"{trial.devices} {trial.platform}, {trial.lanes} clients at a time on each"),
    ]


def _by_method(told: Forecast, name: str) -> tuple[str, ...]:
    trial = told.trials[name]
    pairs = zip(told.plan.runs, told.kinds, told.counts, strict=True)
    config, count = next((config, count) for (config, _), kind, count in pairs if kind == name)
    return (
        TITLES.get(name, name),
        f"{count.steps / config.rounds:,.0f}",
        f"{count.steps:,}",
        f"{100 * count.wasted:.1f} %",
        _size(trial.bytes),
        _size(count.up),
        _size(count.down),
    )


def _memory(told: Forecast) -> list[tuple[str, str, str]]:
    images, views = len(told.plan.task.images), told.plan.runs[0][0].data.views
    device = max((trial.device for trial in told.trials.values()), key=lambda parts: sum(parts.values()))
    cached = bytes_of(images, views, told.width)
    disk = 0
    for (config, _), kind, count in zip(told.plan.runs, told.kinds, told.counts, strict=True):
        trial, kept = told.trials[kind], config.checkpoint.keep if config.checkpoint.every else 1
        disk += kept * (trial.server + count.taking_part * trial.private)
    held = [(f"a device: {part}", _size(size), "by arithmetic") for part, size in device.items() if part != "working"]
    return [
        *held,
        ("a device: to work with", _size(device["working"]), "by the compiler's analysis of a round"),
        ("this host", "unknown" if told.host is None else _size(told.host), "measured: the most so far"),
        ("disk: checkpoints", _size(disk), "by arithmetic, of all runs"),
        ("disk: features", _size(cached), "still to be made" if told.to_encode else "in the cache"),
    ]


def _time(told: Forecast) -> list[tuple[str, str, str]]:
    seconds, trials = told.seconds, told.trials.values()
    step = max(trial.step for trial in trials)
    scored = max(trial.last_evaluation for trial in trials)
    encoded = f"{told.to_encode:,} images, {1000 * told.image:.3g} ms each" if told.to_encode else "in the cache"
    return [
        ("encode", duration(seconds["encode"]), encoded),
        ("compile", duration(seconds["compile"]), "at most; programs of earlier runs are kept"),
        ("train", duration(seconds["train"]), f"up to {1000 * step:.3g} ms a local step"),
        ("evaluate", duration(seconds["evaluate"]), f"up to {1000 * scored:.3g} ms at the end of a run"),
        ("together", duration(sum(seconds.values())), "one run after another; loading, saving and reports not counted"),
    ]


def _size(count: int) -> str:
    for step, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= step:
            return f"{count / step:.1f} {unit}"
    return f"{count} B"

"""A method beside its baselines, over seeds: every row of one seed has the same images and the same clients."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax import distributed, events, experiment, formats, remarks, workdir
from fedrsclip_jax.config import Config, digest, to_dict
from fedrsclip_jax.errors import CheckError
from fedrsclip_jax.federated.engine import Diverged
from fedrsclip_jax.federated.mesh import make_mesh
from fedrsclip_jax.interrupt import Interrupt
from fedrsclip_jax.methods import TITLES
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.report.glossary import BELOW_TABLE
from fedrsclip_jax.report.page import remove_report, write_report
from fedrsclip_jax.report.percent import diverged_with, percents
from fedrsclip_jax.report.terminal import print_table
from fedrsclip_jax.task import Task, encode_images, load_task

# What a summary may hold beyond the scores of its sample of clients, and how it is told.
BEYOND = {
    "participants": ("mean", "worst_decile"),
    "unseen": ("mean", "worst_decile"),
    "base_to_new": ("base", "new", "harmonic_mean"),
}
BEYOND_TITLES = {
    "participants": "clients that have taken part, on their own images: mean, worst tenth",
    "unseen": "clients that never trained, the federation's model: mean, worst tenth",
    "base_to_new": "the federation's model: base classes, new classes, harmonic mean",
}


@dataclass(frozen=True)
class Plan:
    """What a comparison is going to run, all of which fits.

    Attributes:
      task: images and backbone, of all runs.
      known: digests of what runs start from, as far as they are known before the images are encoded.
      runs: configuration and folder of each, in their order.
    """

    task: Task
    known: dict[str, str]
    runs: list[tuple[Config, Path]]

    def check_earlier(self, allowed: Sequence[str]) -> list[dict[str, Any] | None]:
        """See `experiment.check_earlier`, of each run."""
        for _, own in self.runs:
            experiment.check_seen(own)
        with distributed.together():
            return [experiment.check_earlier(alone, own, self.known, allowed) for alone, own in self.runs]


def plan(config: Config, folder: Path) -> Plan:
    """Finds out whether a comparison can be run in `folder`, which is left as it is; no image is encoded.

    Raises:
      InputError: something does not fit.
    """
    # The configured method last, as the table shows it.
    names = [*dict.fromkeys((*config.baselines, config.method.name))]
    for name in names:
        experiment.check_method(config, name, "method.name" if name == config.method.name else "baselines")
    seeds = range(config.seed, config.seed + config.seeds)
    with distributed.together():
        workdir.check(folder)
        task = load_task(config)
        make_mesh(config.spmd.devices)
        for seed in seeds:
            known = experiment.check_settings(dataclasses.replace(config, seed=seed), task)
    distributed.check_same({"configuration": digest(config), **known})
    return Plan(task, known, [_row(config, folder, seed, name) for seed in seeds for name in reversed(names)])


def compare(
    config: Config,
    folder: Path,
    progress: Progress,
    interrupt: Interrupt,
    allowed: Sequence[str] = (),
    *,
    tensorboard: bool = False,
    report: bool = True,
) -> dict[str, Any]:
    """Runs method and baselines for every seed, or goes on with what an earlier start has left undone.

    The configured method with the first seed is the run of `folder` itself; the others are complete runs below
    `folder/compared/`. `comparison.json` holds the table. A run that diverges does not stop the others: its row says
    so, and when the same comparison is started again it goes on from its last sound round.

    Args:
      interrupt, allowed: see `experiment.run`.
      tensorboard: whether to write event files, below `folder/tensorboard/` a folder a run.
      report: whether to draw `report.html`, of the comparison and of each run; otherwise older ones are removed, as
        they may show less than what has been run.

    Returns:
      The comparison: `rows` by name, `paired_on_clients`, which are differences of the method to each other row, and
      `diverged`, the runs that did not come to their end.

    Raises:
      InputError: something does not fit; if nothing is saved yet, nothing is left in `folder`.
      CheckError: all runs diverged.
      Stopped: as `interrupt` asked.
    """
    if tensorboard:
        with distributed.together():
            events.check_installed()
    draw = write_report if report else remove_report
    planned = plan(config, folder)
    with workdir.claim(folder, progress.say):
        planned.check_earlier(allowed)  # before the images are encoded, too
        with distributed.together():
            formats.write(folder / workdir.STUDY, {"config": to_dict(config)})
        for sentence in remarks.of_task(config, planned.task):
            progress.say(sentence)
        began = time.perf_counter()
        features = encode_images(config, planned.task, progress, interrupt)
        encode_seconds = time.perf_counter() - began

        summaries: dict[str, list[dict[str, Any]]] = {}
        diverged: list[dict[str, Any]] = []
        for number, (alone, own) in enumerate(planned.runs):
            if number and (stops := max(distributed.exchange(interrupt.exit_code))):
                interrupt.leave(f"{number} of {len(planned.runs)} runs are done", stops)
            name = alone.method.name
            finished = summaries.setdefault(name, [])
            try:
                summary = experiment.run(
                    alone,
                    planned.task,
                    features,
                    own,
                    progress.part(number + 1, len(planned.runs)),
                    interrupt,
                    allowed=allowed,
                    encode_seconds=encode_seconds,
                    events=folder / events.FOLDER / f"{name}-seed{alone.seed}" if tensorboard else None,
                )
            except Diverged as error:  # a result like any other, of this run alone
                diverged.append({"method": name, "seed": alone.seed, "reason": str(error)})
                progress.say(f"{name}, seed {alone.seed}: {error}")
                with distributed.together():
                    remove_report(own)
            else:
                finished.append(summary)
                if len(planned.runs) > 1:  # or the only page is written below
                    with distributed.together():
                        draw(own)
            encode_seconds = 0.0  # it was spent once
        if not any(summaries.values()):
            raise _not_converged(diverged, len(planned.runs))
        as_shown = {name: summaries[name] for name in reversed(summaries)}
        result = {"config": to_dict(config), **tabulate(as_shown, config.method.name, diverged)}
        with distributed.together():
            formats.write(folder / "comparison.json", result)
            if not (folder / "config.json").is_file():  # the run of `folder` itself had no sound round, and left none
                formats.write(folder / "config.json", to_dict(planned.runs[0][0]))
            draw(folder)  # once more, with the comparison
        return result


def _row(config: Config, folder: Path, seed: int, name: str) -> tuple[Config, Path]:
    """The configuration and the folder of one run of the comparison."""
    method = dataclasses.replace(config.method, name=name)
    alone = dataclasses.replace(config, seed=seed, seeds=1, baselines=(), method=method)
    first = name == config.method.name and seed == config.seed
    return alone, folder if first else folder / "compared" / f"{name}-seed{seed}"


def tabulate(
    summaries: dict[str, list[dict[str, Any]]], method: str, diverged: Sequence[dict[str, Any]] = ()
) -> dict[str, Any]:
    """Means and deviations over seeds, and differences paired on equal partitions and the same scored clients.

    Args:
      summaries: of the runs that came to their end, by method; at least one.
      diverged: method and seed of the others.
    """
    # Zero-shot CLIP depends on the partition alone, which all methods of a seed share.
    of_seed = {run["seed"]: run for runs in summaries.values() for run in runs}
    lost = {name: sorted(each["seed"] for each in diverged if each["method"] == name) for name in summaries}
    figures = {"zero_shot": {seed: _of_zero_shot(of_seed[seed]) for seed in sorted(of_seed)}}
    figures |= {name: {run["seed"]: _of_method(run) for run in runs} for name, runs in summaries.items()}
    rows = {
        name: {
            **{column: _spread([run[column] for run in runs.values()]) for column in ("on_clients", "worst_decile")},
            "pooled": _spread([run["pooled"] for run in runs.values() if run["pooled"] is not None]),
            "uplink_params": next((run["uplink_params"] for run in runs.values()), None),
            "seeds": [*runs],
            "diverged": lost.get(name, []),
        }
        for name, runs in figures.items()
    }
    pairs = [(method, name) for name in figures if name != method]
    if "promptfl" in figures and method != "promptfl":
        pairs.append(("promptfl", "zero_shot"))
    paired = {}
    for one, other in pairs:
        both = [
            seed
            for seed, run in figures[one].items()
            # Of the virtual clients an older version scored others.
            if seed in figures[other] and run["clients"] == figures[other][seed]["clients"]
        ]
        differences = [figures[one][seed]["on_clients"] - figures[other][seed]["on_clients"] for seed in both]
        if differences:
            paired[f"{one} - {other}"] = _spread(differences)
    return {
        "seeds": sorted({*of_seed, *(each["seed"] for each in diverged)}),
        "split": next(iter(of_seed.values()))["split"],
        "rows": rows,
        "paired_on_clients": paired,
        "diverged": [*diverged],
        **_beyond(summaries, of_seed),
    }


def _of_zero_shot(summary: dict[str, Any]) -> dict[str, Any]:
    zero = summary["zero_shot"]
    own = {"on_clients": zero["on_clients"]["mean"], "worst_decile": zero["on_clients"]["worst_decile"]}
    return {**own, "pooled": zero["accuracy"], "uplink_params": 0, "clients": zero["on_clients"].get("clients")}


def _of_method(summary: dict[str, Any]) -> dict[str, Any]:
    own, params = summary["personalised"], summary["uplink_params_per_client_round"]
    pooled = summary["global"]["accuracy"] if params else None  # without a shared prompt the federation has no model
    return {
        "on_clients": own["mean"],
        "worst_decile": own["worst_decile"],
        "pooled": pooled,
        "uplink_params": params,
        "clients": own.get("clients"),
    }


def _beyond(summaries: dict[str, list[dict[str, Any]]], of_seed: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Rows for other clients and other classes than the table's, by the part of the summary they are in."""
    found = {}
    for part, figures in BEYOND.items():
        if any(part not in run for runs in summaries.values() for run in runs):
            continue
        scores = {"zero_shot": [of_seed[seed][part]["zero_shot"] for seed in sorted(of_seed)]}
        for name, runs in summaries.items():
            if runs and (part == "participants" or runs[0]["uplink_params_per_client_round"]):
                scores[name] = [run[part]["global"] if part == "unseen" else run[part] for run in runs]
        found[part] = {
            name: {figure: _spread([run[figure] for run in runs]) for figure in figures}
            for name, runs in scores.items()
        }
    return found


def check_converged(result: dict[str, Any]) -> None:
    """Raises CheckError where runs of a comparison diverged, and names them."""
    if diverged := result["diverged"]:
        finished = sum(len(row["seeds"]) for name, row in result["rows"].items() if name != "zero_shot")
        raise _not_converged(diverged, len(diverged) + finished)


def _not_converged(diverged: Sequence[dict[str, Any]], runs: int) -> CheckError:
    each = "; ".join(f"{run['method']}, seed {run['seed']}: {run['reason']}" for run in diverged)
    return CheckError(f"{len(diverged)} of {runs} runs diverged: {each}" if runs > 1 else each)


def show(result: dict[str, Any], console: Console) -> None:
    """The closing table, no wider than 80 columns."""
    seeds = len(result["seeds"])
    of = f", mean ± standard deviation of {seeds} seeds" if seeds > 1 else ""
    table = Table(title=f"accuracy in % on {result['split']} images{of}", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("")
    for heading in ("clients' own", "worst tenth", "pooled", "numbers sent"):
        table.add_column(heading, justify="right")
    for name, row in result["rows"].items():
        cells = [_said(row[column]) for column in ("on_clients", "worst_decile", "pooled")]
        sent = "-" if row["uplink_params"] is None else f"{row['uplink_params']:,}"
        table.add_row(TITLES.get(name, name), *cells, sent)
        if row["diverged"]:
            table.add_row(f"  {diverged_with(row)}", "", "", "", "")
    print_table(table, console)
    console.print(f"{BELOW_TABLE}\n", highlight=False, style="dim", soft_wrap=True)
    paired = ", paired by seed" if seeds > 1 else ""
    console.print(f"on the clients' own images, in points{paired}:", highlight=False)
    for difference, spread in result["paired_on_clients"].items():
        left, _, right = difference.partition(" - ")
        names = f"{TITLES.get(left, left)} over {TITLES.get(right, right)}"
        console.print(f"  {names:<28} {_said(spread, sign=True)}", highlight=False)
    for part, said in BEYOND_TITLES.items():
        if part in result:
            console.print(f"{said}:", highlight=False)
        for name, figures in result.get(part, {}).items():
            cells = "   ".join(f"{_said(spread):>11}" for spread in figures.values())
            console.print(f"  {TITLES.get(name, name):<14} {cells}", highlight=False)


def _spread(values: list[float]) -> dict[str, Any] | None:
    """Mean, standard deviation of the sample (None for a single seed) and the values themselves; None without any."""
    if not values:
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "std": std, "values": [float(v) for v in values]}


def _said(spread: dict[str, Any] | None, sign: bool = False) -> str:
    return percents(None if spread is None else spread["values"], sign)

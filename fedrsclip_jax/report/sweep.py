"""What a sweep shows: `results.csv` (a row a run), `table.md` (a row a setting), and its pictures."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax.files import write_bytes, write_text
from fedrsclip_jax.report.percent import percents
from fedrsclip_jax.report.sweep_charts import pictures
from fedrsclip_jax.report.terminal import print_table

# What is told of every run: heading of the column, and where the run's figure and zero-shot's stand in `summary.json`.
FIGURES = {
    "clients' own": (("personalised", "mean"), ("zero_shot", "on_clients", "mean")),
    "worst tenth": (("personalised", "worst_decile"), ("zero_shot", "on_clients", "worst_decile")),
    "pooled, shared prompt": (("global", "accuracy"), ("zero_shot", "accuracy")),
}
# The same of what is told where runs were asked for it.
_MORE = {
    "clients that took part": (("participants", "mean"), ("participants", "zero_shot", "mean")),
    "unseen clients": (("unseen", "global", "mean"), ("unseen", "zero_shot", "mean")),
    "new classes": (("base_to_new", "new"), ("base_to_new", "zero_shot", "new")),
    "harmonic mean": (("base_to_new", "harmonic_mean"), ("base_to_new", "zero_shot", "harmonic_mean")),
}
# Columns of `results.csv` that it has where a run was asked for them, and where they stand in `summary.json`.
_BEYOND = {
    "participants_own": ("participants", "mean"),
    "participants_zero_shot": ("participants", "zero_shot", "mean"),
    "unseen_global": ("unseen", "global", "mean"),
    "unseen_zero_shot": ("unseen", "zero_shot", "mean"),
    "base": ("base_to_new", "base"),
    "new": ("base_to_new", "new"),
    "harmonic_mean": ("base_to_new", "harmonic_mean"),
    "new_personal": ("base_to_new", "personal", "new"),
    "new_zero_shot": ("base_to_new", "zero_shot", "new"),
}


def write_results(result: dict[str, Any], folder: Path) -> None:
    """Writes all of it below the sweep's folder; `result` is what `sweep.json` says."""
    write_text(folder / "results.csv", as_csv(result))
    write_text(folder / "table.md", as_markdown(result))
    (folder / "pictures").mkdir(exist_ok=True)
    for name, picture in pictures(result).items():
        write_bytes(folder / "pictures" / f"{name}.png", picture)


def as_csv(result: dict[str, Any]) -> str:
    """A line a run; empty cells where it diverged."""
    out = io.StringIO()
    writer = csv.writer(out)
    names = ("own", "own_std", "worst_decile", "global_accuracy", "global_macro_f1", "global_ece", "zero_shot_own")
    counts = ("uplink_params_per_client_round", "bytes_sent", "best_round", "state_sha256")
    told = _summaries(result["rows"])
    beyond = [name for name, (part, *_) in _BEYOND.items() if any(part in summary for summary in told)]
    writer.writerow(["row", *result["varied"], "seed", *names, *counts, *beyond, "folder", "diverged"])
    for row in result["rows"]:
        for run in row["runs"]:
            summary = run["summary"]
            cells: list[Any] = [""] * (len(names) + len(counts) + len(beyond))
            if summary:
                own, pooled = summary["personalised"], summary["global"]
                cells = [own["mean"], own["std"], own["worst_decile"]]
                shares = summary["uplink_params_per_client_round"] > 0  # else there is no model of the federation
                cells += [pooled[name] if shares else "" for name in ("accuracy", "macro_f1", "ece")]
                cells += [summary["zero_shot"]["on_clients"]["mean"], *(summary[name] for name in counts)]
                found = [figure_at(summary, _BEYOND[name]) for name in beyond]
                cells += ["" if figure is None else figure for figure in found]
            varied = [row["values"].get(key, "") for key in result["varied"]]
            writer.writerow([row["label"], *varied, run["seed"], *cells, run["folder"], run["diverged"] or ""])
    return out.getvalue()


def figures_of(summaries: Sequence[dict[str, Any]]) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """The figures that these runs have: heading, and where the run's and zero-shot's stand in a summary."""
    more = {name: at for name, at in _MORE.items() if any(at[0][0] in summary for summary in summaries)}
    return {**FIGURES, **more}


def percents_at(summaries: Sequence[dict[str, Any]], place: Sequence[str]) -> str:
    """Mean and deviation of a figure over the runs that have it."""
    found = [figure_at(summary, place) for summary in summaries]
    return percents([figure for figure in found if figure is not None])


def figure_at(summary: dict[str, Any], place: Sequence[str]) -> float | None:
    """A figure that a run may lack, or have none of as it shares nothing."""
    found: Any = summary
    for name in place:
        found = (found or {}).get(name)
    return found


def table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: mean and deviation over seeds in percent, differences paired by seed.

    Rows on equal partitions stand together below a zero-shot line of theirs and are compared with the first of them:
    between partitions accuracies differ by more than between methods. The best of them is in bold where images for
    validation were scored, as a choice on test images would be none, and where no seed is missing. A `p` is of the t
    test for pairs (Student 1908) of a row and the first one, over seeds and so over partitions, uncorrected.
    """
    figures = figures_of(_summaries(result["rows"]))
    headings = ["", *figures, "vs first row", "p", "numbers sent"]
    blocks = _blocks(result["rows"])
    rows = []
    for block in blocks:
        one_a_seed = {run["seed"]: run["summary"] for row in block for run in row["runs"] if run["summary"]}
        zero = [percents_at([*one_a_seed.values()], place) for _, place in figures.values()]
        said = _division(block, result["varied"]) if len(blocks) > 1 else ""
        rows.append([f"zero-shot{f' ({said})' if said else ''}", *zero, "", "", "0"])
        own = [_by_seed(row) for row in block]
        means = [float(np.mean([*v.values()])) if len(v) == len(result["seeds"]) else -1.0 for v in own]
        best = int(np.argmax(means)) if result["split"] == "validation" and max(means) >= 0 else -1
        for number, (row, values) in enumerate(zip(block, own, strict=True)):
            lost = sum(run["summary"] is None for run in row["runs"])
            label = row["label"] + (f" ({lost} of {len(row['runs'])} diverged)" if lost else "")
            of_runs = [place for place, _ in figures.values()]
            cells = [label, *_cells(row, of_runs, values, own[0] if number else None)]
            rows.append([f"**{cell}**" if cell and number == best else cell for cell in cells])
    return headings, rows


def _cells(
    row: dict[str, Any], places: Sequence[Sequence[str]], own: dict[int, float], first: dict[int, float] | None
) -> list[str]:
    """A row's figures, its difference from the first one, and what a client sends."""
    summaries = _summaries([row])
    shares = bool(summaries) and summaries[0]["uplink_params_per_client_round"] > 0
    # Without a shared prompt there is no model of the federation.
    cells = [percents_at(summaries, at) if shares or at[0] != "global" else "-" for at in places]
    if first is None:
        cells += ["", ""]
    else:
        apart = [own[seed] - first[seed] for seed in sorted(own.keys() & first.keys())]
        cells += [percents(apart, sign=True), _p(apart)]
    cells.append(f"{summaries[0]['uplink_params_per_client_round']:,}" if summaries else "-")
    return cells


def _blocks(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Rows by the partitions they are on, in their order; one without runs stands with those of equal settings."""
    own = [{run["seed"]: run["summary"]["partition_sha256"] for run in row["runs"] if run["summary"]} for row in rows]
    blocks: list[list[int]] = []
    partitions: list[dict[int, str]] = []
    for number in (number for number, digests in enumerate(own) if digests):
        for block, theirs in zip(blocks, partitions, strict=True):
            common = own[number].keys() & theirs.keys()
            if common and all(own[number][seed] == theirs[seed] for seed in common):
                block.append(number)
                theirs.update(own[number])
                break
        else:
            blocks.append([number])
            partitions.append(dict(own[number]))
    for number in (number for number, digests in enumerate(own) if not digests):
        settings = _of_partition(rows[number])
        alike = [block for block in blocks if settings in [_of_partition(rows[other]) for other in block]]
        if alike:
            alike[0].append(number)
        else:
            blocks.append([number])
    return [[rows[number] for number in sorted(block)] for block in sorted(blocks, key=min)]


def _of_partition(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["values"].items() if key.startswith("partition.")}


def _division(block: Sequence[dict[str, Any]], varied: Sequence[str]) -> str:
    """The varied keys of the partition, as the first row of a block has them, which tell it from the others."""
    values = block[0]["values"]
    said = [f"{key.rpartition('.')[2]}={values[key]}" for key in varied if key.startswith("partition.")]
    return ", ".join(said) or block[0]["label"]


def as_markdown(result: dict[str, Any]) -> str:
    headings, rows = table(result)
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    seeds = len(result["seeds"])
    said = (
        f"Accuracy in % on {result['split']} images, mean ± standard deviation over {seeds} seed{'s' * (seeds != 1)}, "
        "each with a partition of its own. Clients' own: each client's images, mean over clients; worst tenth: over "
        "the worst tenth of clients; pooled: all images, with the shared prompt alone. Differences and p (t test, "
        "uncorrected) are paired by seed, among rows on equal partitions, from the first of them."
    )
    return "\n".join([said, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def show(result: dict[str, Any], console: Console) -> None:
    """The table on a terminal, without what everybody sends."""
    headings, rows = table(result)
    title = f"accuracy in % on {result['split']} images"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings[:-1]):
        shown.add_column(heading.partition(",")[0], justify="right" if number else "left", no_wrap=number > 0)
    for row in rows:
        shown.add_row(*(f"[bold]{cell[2:-2]}[/bold]" if cell.startswith("**") else cell for cell in row[:-1]))
    print_table(shown, console)


def _summaries(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of all runs that came to their end."""
    return [run["summary"] for row in rows for run in row["runs"] if run["summary"]]


def _by_seed(row: dict[str, Any]) -> dict[int, float]:
    return {run["seed"]: run["summary"]["personalised"]["mean"] for run in row["runs"] if run["summary"]}


def _p(apart: list[float]) -> str:
    if len(apart) < 2 or np.ptp(apart) == 0:
        return "-"
    from scipy.stats import ttest_1samp

    found: Any = ttest_1samp(apart, 0.0)
    return "< 0.001" if found.pvalue < 0.001 else f"{found.pvalue:.3f}"

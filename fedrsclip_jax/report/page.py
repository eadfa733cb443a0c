"""`report.html` of a run, of several runs side by side, or of a sweep: one file that needs nothing else.

No script, no font and no picture from elsewhere. Light and dark follow the reader's system; in print it is light.
"""

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedrsclip_jax import distributed, formats
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evidence import Evidence
from fedrsclip_jax.files import read_json, write_text
from fedrsclip_jax.ledger import read_lines, read_training
from fedrsclip_jax.methods import TITLES
from fedrsclip_jax.report import charts, glossary, sweep_charts
from fedrsclip_jax.report.charts import Chart
from fedrsclip_jax.report.percent import diverged_with, percent, percents
from fedrsclip_jax.report.stylesheet import STYLE
from fedrsclip_jax.report.sweep import FIGURES, figure_at, figures_of, table
from fedrsclip_jax.workdir import STUDY

FILE = "report.html"
_NEEDED = (
    *("method", "dataset", "backbone", "split", "seed", "num_classes", "num_clients", "rounds", "seconds"),
    *("personalised", "global", "global_on_clients", "personal_on_pooled", "zero_shot"),
    *("uplink_params_per_client_round", "bytes_sent", "partition_sha256"),
)


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the page of a finished run or sweep from the other files of its folder; returns its path.

    Args:
      path: where to; None is `report.html` in the folder.

    Raises:
      InputError: the folder holds neither.
    """
    if (folder / "sweep.json").is_file():
        title, body = _sweep(folder)
    elif (folder / "comparison.json").is_file() and not (folder / "summary.json").is_file():
        title, body = _others(folder)
    else:
        title, body = _run(folder)
    path = path or folder / FILE
    write_text(path, _page(title, body))
    return path


def remove_report(folder: Path) -> None:
    """Removes the page of a folder, if there is one, as it may show less than what has been run since."""
    if distributed.first():
        (folder / FILE).unlink(missing_ok=True)


def write_joint_report(folders: Sequence[Path], path: Path) -> None:
    """Writes one page on several runs side by side.

    Raises:
      InputError: one of the folders holds no finished run.
    """
    if twice := [folder for n, folder in enumerate(folders) if folder.resolve() in {f.resolve() for f in folders[:n]}]:
        raise InputError(f"--workdir: {twice[0]} is given twice; name each run once")
    if sweeps := [folder for folder in folders if (folder / "sweep.json").is_file()]:
        raise InputError(f"--workdir: {sweeps[0]} is a sweep, whose page stands alone; give runs, such as its runs/*")
    summaries = [_summary(folder) for folder in folders]
    every = [read_lines(folder) for folder in folders]
    names = _names(folders, summaries)
    title = f"{len(folders)} runs side by side"
    more = {name: place for name, (place, _) in figures_of(summaries).items() if name not in FIGURES}
    rows = []
    for name, summary in zip(names, summaries, strict=True):
        own, zero = summary["personalised"], summary["zero_shot"]
        shares = summary["uplink_params_per_client_round"] > 0
        rows.append(
            (
                html.escape(name),
                percent(zero["on_clients"]["mean"]),
                percent(own["mean"]),
                percent(own["worst_decile"]),
                percent(summary["global"]["accuracy"]) if shares else "-",
                *(percent(figure_at(summary, place)) for place in more.values()),
                f"{summary['bytes_sent']:,}",
            )
        )
    head = (
        "",
        "zero-shot, own images",
        "personal, own images",
        "worst tenth",
        "federation, pooled",
        *more,
        "bytes sent",
    )
    lines = dict(zip(names, every, strict=True))
    shown = [
        charts.side_by_side(lines, ("personalised", "mean"), "Personal models on their clients' images", "own"),
        charts.side_by_side(lines, ("personalised", "worst_decile"), "The worst tenth of clients", "worst"),
    ]
    sharing = {
        name: lines[name]
        for name, summary in zip(names, summaries, strict=True)
        if summary["uplink_params_per_client_round"]
    }
    if sharing:
        part = ("global", "accuracy")
        shown.append(charts.side_by_side(sharing, part, "The federation's model, pooled images", "pooled"))
    others = {summary["partition_sha256"] for summary in summaries}
    warning = (
        ""
        if len(others) == 1
        else "<p>These runs are <b>not on equal partitions</b>: between partitions accuracies differ by more than "
        "between methods, so that differences here say little.</p>"
    )
    body = [
        f"<h1>{title}</h1>",
        warning,
        "<h2>Accuracy in %</h2>",
        _table(head, rows),
        glossary.as_html(),
        "<h2>In figures</h2>",
    ]
    body.append(_figures(shown))
    for number, (name, folder) in enumerate(zip(names, folders, strict=True)):
        inner = _run(folder, prefix=f"r{number}-")[1]
        body.append(f"<details><summary>{html.escape(name)}</summary>{inner}</details>")
    write_text(path, _page(title, "".join(body)))


def _run(folder: Path, prefix: str = "") -> tuple[str, str]:
    """Title and body of the page of one run; `prefix` keeps its figures apart from another run's."""
    summary, lines, found = _summary(folder), read_lines(folder), Evidence.load(folder)
    zero, own = summary["zero_shot"], summary["personalised"]
    shares = summary["uplink_params_per_client_round"] > 0
    method = TITLES.get(summary["method"], summary["method"])
    title = f"{method} on {summary['dataset']}, seed {summary['seed']}"
    names = summary.get("class_names") or [str(c) for c in range(summary["num_classes"])]

    domains, owners = summary.get("client_domains"), summary.get("client_names")
    called = domains or owners

    def client(k: int) -> str:
        return f"{k}, {called[k]}" if called else str(k)

    scored = f", {len(own['clients']):,} of them scored" if "clients" in own else ""
    if without := own.get("without_test"):
        scored += f", {without:,} without a test image"
    if said := summary.get("scored"):  # runs of older versions do not say so
        scored += f", {100 * said['took_part']:.1f} % of whom took part" if said["took_part"] < 1 else ""
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="quiet">{summary["num_clients"]:,} clients{scored}, {summary["num_classes"]} classes, '
        f"{summary['rounds']} rounds, backbone {html.escape(summary['backbone'])}, {summary['split']} images.</p>",
    ]
    if (folder / "comparison.json").is_file():
        compared = formats.read(folder / "comparison.json")
        body += [
            _headline(summary, shares, compared),
            glossary.as_html(),
            "<h2>Beside its baselines</h2>",
            _baselines(compared),
        ]
        if len(compared["seeds"]) > 1:
            body.append(f'<p class="quiet">What follows is of seed {summary["seed"]} alone.</p>')
    else:
        body += [_headline(summary, shares), glossary.as_html()]
    body += ["<h2>The models on both kinds of images, accuracy in %</h2>", _two_by_two(summary, shares)]
    drawn = [
        charts.by_round(lines, zero, shares),
        charts.by_bytes(lines, zero, shares),
        charts.by_client(summary, client),
        charts.losses(read_training(folder)),
    ]
    if found is not None:
        drawn += [
            charts.owners(found, names, summary["num_clients"], client),
            charts.texts(found, names, client),
            charts.confusion(found, names, shares),
        ]
    drawn.append(charts.seconds(summary["seconds"]))
    body += ["<h2>In figures</h2>", _figures([chart for chart in drawn if chart], prefix)]
    if found is not None and len(found.wrong):
        body += ["<h2>Mistakes</h2>", _mistakes(found, names, shares)]
    if called:
        title_of_table, column = ("Sources of the clients", "source") if domains else ("Names of the clients", "name")
        rows = [(str(k), html.escape(name)) for k, name in enumerate(called[:200])]
        body.append(f"<details><summary>{title_of_table}</summary>{_table(('client', column), rows)}</details>")
    body.append(_made(summary.get("provenance")))
    body.append(_configuration(folder))
    return title, "".join(body)


def _configuration(folder: Path) -> str:
    """What was asked for: of a comparison its own configuration, of which the one of its first run is a part."""
    written = read_json(folder / "config.json")
    for record in (STUDY, "comparison.json"):  # versions before 0.2.0 kept no study
        whole = read_json(folder / record) if (folder / record).is_file() else {}
        if "config" in whole:
            written = {**{name: whole[name] for name in ("format", "version") if name in whole}, **whole["config"]}
            break
    return f"<details><summary>Configuration</summary><pre>{html.escape(json.dumps(written, indent=2))}</pre></details>"


def _made(provenance: dict[str, Any] | None) -> str:
    """With what a run was computed; older versions did not write it down."""
    if provenance is None:
        return ""
    starts = [*provenance["earlier"], provenance]
    rows = [
        (
            html.escape(name.replace("_", " ")),
            # A command is one long word to a browser.
            *(f'<span class="long">{html.escape(str(start.get(name) or "-"))}</span>' for start in starts),
        )
        for name in provenance
        if name not in ("earlier", "after_round")
    ]
    head = ("", *(f"from round {start['after_round'] + 1}" for start in starts))
    return f"<details><summary>How it was computed</summary>{_table(head, rows)}</details>"


def _others(folder: Path) -> tuple[str, str]:
    """Title and body of the page of a comparison whose first run, that of the folder itself, diverged."""
    compared = formats.read(folder / "comparison.json", "config", "rows", "seeds")
    method = compared["config"]["method"]["name"]
    title = f"{TITLES.get(method, method)} diverged beside its baselines"
    return title, f"<h1>{html.escape(title)}</h1>{_baselines(compared)}{glossary.as_html()}"


def _sweep(folder: Path) -> tuple[str, str]:
    """Title and body of the page of a sweep."""
    result = formats.read(folder / "sweep.json", "rows", "varied", "split", "seeds")
    title = f"Sweep over {', '.join(result['varied'])}"
    headings, rows = table(result)
    bold = [[f"<b>{html.escape(c[2:-2])}</b>" if c.startswith("**") else html.escape(c) for c in row] for row in rows]
    runs = [
        (
            html.escape(row["label"]),
            str(run["seed"]),
            *(
                (
                    percent(run["summary"]["zero_shot"]["on_clients"]["mean"]),
                    percent(run["summary"]["personalised"]["mean"]),
                    percent(run["summary"]["personalised"]["worst_decile"]),
                    percent(run["summary"]["global"]["accuracy"])
                    if run["summary"]["uplink_params_per_client_round"]
                    else "-",
                )
                if run["summary"]
                else ("diverged", "", "", "")
            ),
            f'<a href="{html.escape(run["folder"])}/{FILE}">report</a>'
            if run["summary"] and (folder / run["folder"] / FILE).is_file()
            else "",
        )
        for row in result["rows"]
        for run in row["runs"]
    ]
    seeds = len(result["seeds"])
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="quiet">{len(result["rows"])} rows, {seeds} seed{"s" * (seeds != 1)} each; accuracy in % on '
        f"{result['split']} images, mean ± standard deviation over seeds. Differences and p (t test, uncorrected) are "
        "paired by seed, among rows on equal partitions.</p>",
        _table(headings, bold),
        glossary.as_html(),
    ]
    if drawn := sweep_charts.charts(result):
        body += ["<h2>In figures</h2>", _figures(drawn)]
    head = ("row", "seed", "zero-shot, own", "personal, own", "worst tenth", "federation, pooled", "")
    body += [f"<details><summary>{len(runs)} runs</summary>", _table(head, runs), "</details>"]
    body.append(_configuration(folder))
    return title, "".join(body)


def _headline(summary: dict[str, Any], shares: bool, compared: dict[str, Any] | None = None) -> str:
    """Tiles with the main figures: over all seeds of a comparison, where there is one, else of the run."""
    zero, own = summary["zero_shot"], summary["personalised"]
    figures = {
        "on_clients": ("Clients' own images, personal models", own["mean"], zero["on_clients"]["mean"]),
        "worst_decile": ("Worst tenth of clients", own["worst_decile"], zero["on_clients"]["worst_decile"]),
        "pooled": ("Pooled images, the federation's model", summary["global"]["accuracy"], zero["accuracy"]),
    }
    if not shares:
        del figures["pooled"]
    made = []
    for column, (title, value, before) in figures.items():
        values, befores, of = [value], [before], ""
        if compared is not None and (row := compared["rows"].get(summary["method"])) and row[column]:
            values, befores = row[column]["values"], compared["rows"]["zero_shot"][column]["values"]
            if row.get("diverged"):  # zero-shot of the seeds that the method has
                of_seed = dict(zip(compared["rows"]["zero_shot"]["seeds"], befores, strict=True))
                befores = [of_seed[seed] for seed in row["seeds"]]
            of = f" ({len(values)} seeds)" if len(values) > 1 else ""
        gain = f"{100 * (np.mean(values) - np.mean(befores)):+.1f} points"
        made.append(
            f"<div><span>{title}{of}</span><b>{percents(values)} %</b>"
            f"<span>zero-shot {percents(befores)} %, {gain}</span></div>"
        )
    sent = summary["uplink_params_per_client_round"]
    made.append(
        f"<div><span>Numbers sent by a client in a round (uplink)</span><b>{sent:,}</b>"
        f"<span>{summary['bytes_sent']:,} bytes by all clients in all rounds</span></div>"
    )
    return f'<div class="figures">{"".join(made)}</div>'


def _baselines(result: dict[str, Any]) -> str:
    """The closing table of a comparison."""
    rows = [
        (
            html.escape(", ".join(filter(None, (str(TITLES.get(name, name)), diverged_with(row))))),
            *(percents(row[column] and row[column]["values"]) for column in ("on_clients", "worst_decile", "pooled")),
            "-" if row["uplink_params"] is None else f"{row['uplink_params']:,}",
        )
        for name, row in result["rows"].items()
    ]
    seeds = len(result["seeds"])
    head = ("", "clients' own images", "worst tenth", "pooled images", "numbers sent")
    of = f"mean ± standard deviation of {seeds} seeds" if seeds > 1 else "one seed"
    return f'<p class="quiet">Accuracy in %, {of}, equal partitions in every row.</p>{_table(head, rows)}'


def _two_by_two(summary: dict[str, Any], shares: bool) -> str:
    zero, own, shared = summary["zero_shot"], summary["personalised"], summary["global_on_clients"]
    ece = summary["global"]["ece"]
    rows = [
        (
            "zero-shot",
            *map(percent, (*_mean_and_worst(zero["on_clients"]), zero["accuracy"])),
        ),
        ("personal models", *map(percent, (*_mean_and_worst(own), summary["personal_on_pooled"]["mean"]))),
    ]
    if shares:
        cells = map(percent, (*_mean_and_worst(shared), summary["global"]["accuracy"]))
        rows.insert(1, ("federation's model", *cells))
    if others := summary.get("participants"):
        rows += [
            (f"{name} of {len(others['clients']):,} that took part", *map(percent, _mean_and_worst(scores)), "-")
            for name, scores in (("zero-shot", others["zero_shot"]), ("personal models", others))
        ]
    if unseen := summary.get("unseen"):
        rows += [
            (
                f"{name} for {len(scores['per_client'])} clients that never trained",
                *map(percent, _mean_and_worst(scores)),
                "-",
            )
            for name, scores in (("zero-shot", unseen["zero_shot"]), ("federation's model", unseen["global"]))
            if scores
        ]
    said = f"Calibration error of the federation's model on pooled images: {ece:.3f}."
    note = f'<p class="quiet">{said}</p>' if shares else ""
    halves = _base_to_new(summary["base_to_new"]) if "base_to_new" in summary else ""
    return _table(("", "clients' own images", "worst tenth of clients", "pooled images"), rows) + note + halves


def _base_to_new(scores: dict[str, Any]) -> str:
    """Accuracy on the classes that were trained on and on others, each among themselves."""
    models = (
        ("zero-shot", scores["zero_shot"]),
        ("federation's model", scores),
        ("personal models", scores["personal"]),
    )
    rows = [
        (name, *(percent(model[part]) for part in ("base", "new", "harmonic_mean")))
        for name, model in models
        if model["new"] is not None
    ]
    base, new = (len(scores[part]) for part in ("base_classes", "new_classes"))
    said = f"Trained on {base} base classes; images of {new} new ones are told apart among these by their names alone."
    return f'<p class="quiet">{said}</p>{_table(("", "base classes", "new classes", "harmonic mean"), rows)}'


def _mean_and_worst(scores: dict[str, Any]) -> tuple[float, float]:
    return scores["mean"], scores["worst_decile"]


def _mistakes(found: Evidence, names: Sequence[str], shares: bool) -> str:
    items = []
    for at, pixels in zip(found.wrong, found.pictures, strict=True):
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, format="JPEG", quality=85)
        truth, guess = (html.escape(names[int(of[at])]) for of in (found.truth, found.guess))
        picture = _picture(
            out.getvalue(), "jpeg", f"{names[int(found.truth[at])]}, taken for {names[int(found.guess[at])]}"
        )
        items.append(f'<li>{picture}<br>{truth}<br><span class="quiet">taken for {guess}</span></li>')
    whose = "the federation's model" if shares else "zero-shot CLIP, as this method shares nothing"
    note = f"Wrong answers of {whose}, the most confident of each pair of classes."
    return f'<p class="quiet">{note}</p><ul class="wrong">{"".join(items)}</ul>'


def _figures(shown: Sequence[Chart], prefix: str = "") -> str:
    made = []
    for chart in shown:
        drawing = chart.svg.replace(f'"{chart.name}-', f'"{prefix}{chart.name}-').replace(
            f"#{chart.name}-", f"#{prefix}{chart.name}-"
        )
        label = html.escape(f"{chart.title}. {chart.said}")
        kind = ' class="wide"' if chart.wide else ""
        made.append(
            f"<figure{kind}><h3>{html.escape(chart.title)}</h3>"
            f'<div class="scroll" role="img" aria-label="{label}">{drawing}</div>'
            f"<figcaption>{html.escape(chart.said)}</figcaption></figure>"
        )
    return f'<div class="charts">{"".join(made)}</div>'


def _picture(content: bytes, kind: str, said: str) -> str:
    data = base64.b64encode(content).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(said)}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are HTML already; a narrow page shows a block a row."""
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    columns = [html.escape(cell) for cell in head[1:]]

    def line(first: str, *rest: str) -> str:
        tds = (f'<td data-column="{column}">{cell}</td>' for column, cell in zip(columns, rest, strict=True))
        return f"<tr><th>{first}</th>{''.join(tds)}</tr>"

    body = "".join(line(*row) for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head><body><main>{body}</main></body></html>\n"
    )


def _names(folders: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> list[str]:
    """Short names that tell the runs apart: the method and seed where these do, else the folder."""
    names = [f"{TITLES.get(s['method'], s['method'])}, seed {s['seed']}" for s in summaries]
    if len(set(names)) < len(names):
        names = [f"{name} ({folder.name})" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return names


def _summary(folder: Path) -> dict[str, Any]:
    if not (folder / "summary.json").is_file():
        raise InputError(f"--workdir: {folder} holds no finished run or sweep; give the folder of one")
    return formats.read(folder / "summary.json", *_NEEDED)

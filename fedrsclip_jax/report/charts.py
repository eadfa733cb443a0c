"""Charts of a run's report: SVG with the page's own colours, and a sentence on each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from fedrsclip_jax.evidence import Evidence
from fedrsclip_jax.report.drawing import (
    BLUE,
    GOLD,
    GREEN,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    PAGE,
    PURPLE,
    SERIES,
    WIDTH,
    Chart,
    canvas,
    for_page,
    svg,
)  # fmt: skip
from fedrsclip_jax.report.percent import percent

_BARS = 60  # clients that have a bar each
_MARKED = 60  # points of a line that have a mark each
_POINTS = 400  # of more clients, evenly over all of them
_NAMED = 7  # classes whose text features have their names
_CLASSES = 50  # that tables of classes hold; of more, those that tell most


@for_page
def by_round(lines: Sequence[dict[str, Any]], zero: dict[str, Any], shares: bool) -> Chart:
    """Accuracy of the federation's model and of the personal ones, with a band from the worst tenth to the best."""
    rounds = [line["round"] for line in lines]
    if len(lines) > 1:
        figure, axes = canvas()
        _accuracies(axes, rounds, lines, zero, shares)
        _round_axis(axes)
    else:
        figure = _at_the_end(lines[0], zero, shares)
    first, last = lines[0]["personalised"], lines[-1]["personalised"]
    said = (
        f"After round {rounds[-1]} personal models are right on {percent(last['mean'])} % of their clients' images "
        f"(zero-shot {percent(zero['on_clients']['mean'])} %), in the worst tenth of clients on "
        f"{percent(last['worst_decile'])} % (zero-shot {percent(zero['on_clients']['worst_decile'])} %)"
    )
    if len(lines) > 1:
        said += f"; after round {rounds[0]} their mean was {percent(first['mean'])} %"
    title = "Accuracy by round" if len(lines) > 1 else f"Accuracy after round {rounds[0]}"
    return Chart("rounds", title, svg(figure, "rounds"), f"{said}.")


@for_page
def by_bytes(lines: Sequence[dict[str, Any]], zero: dict[str, Any], shares: bool) -> Chart | None:
    """The same against what all clients together have sent; None where nothing is sent, or scored but once."""
    sent = np.array([line["bytes_sent"] for line in lines], float)
    if not sent[-1] or len(lines) < 2:
        return None
    unit, name = _unit(sent[-1])
    figure, axes = canvas()
    _accuracies(axes, sent / unit, lines, zero, shares)
    axes.set(xlabel=f"{name} sent by all clients together")
    axes.set_xlim(left=0)
    best = max(range(len(lines)), key=lambda i: lines[i]["personalised"]["mean"])
    said = (
        f"All clients together sent {sent[-1] / unit:,.1f} {name}; the highest mean of personal models, "
        f"{percent(lines[best]['personalised']['mean'])} %, was reached with {sent[best] / unit:,.1f} {name}."
    )
    return Chart("bytes", "Accuracy against bytes sent", svg(figure, "bytes"), said)


@for_page
def losses(lines: Sequence[dict[str, Any]]) -> Chart | None:
    """Cross-entropy and the two constraints by round, each on its own scale; None without parts, or of one round."""
    titles = {"ce": "cross-entropy", "pacl": "PACL", "cmfac": "CMFAC"}
    there = [name for name in titles if sum(line.get(name) is not None for line in lines) > 1]
    if not there:
        return None
    figure, axes = canvas(columns=len(there), height=2.3)
    said = []
    for name, one, color in zip(there, np.atleast_1d(axes), SERIES, strict=False):
        points = [(line["round"], line[name]) for line in lines if line.get(name) is not None]
        one.plot(
            *zip(*points, strict=True),
            "o-" if len(points) <= _MARKED else "-",
            color=color,
            markersize=3,
            linewidth=1.6,
        )
        one.set(title=titles[name])
        one.set_ylim(0, 1.08 * max(value for _, value in points) or 1)
        _round_axis(one, nbins=4)
        said.append(f"{titles[name]} from {points[0][1]:.3f} to {points[-1][1]:.3f}")
    return Chart("losses", "Parts of the loss by round", svg(figure, "losses"), f"In training: {'; '.join(said)}.")


@for_page
def by_client(summary: dict[str, Any], name: Callable[[int], str]) -> Chart:
    """Personal models on their clients' images, sorted, with marks for zero-shot and the federation's model.

    Args:
      name: of a client, for people.
    """
    own, zero = summary["personalised"]["per_client"], summary["zero_shot"]["on_clients"]["per_client"]
    shared = summary["global_on_clients"]["per_client"]
    ids = summary["personalised"].get("clients", range(len(own)))
    tested = [i for i in range(len(own)) if own[i] is not None]
    tested.sort(key=lambda i: own[i])
    shares = summary["uplink_params_per_client_round"] > 0
    values = 100 * np.array([[own[i], zero[i], shared[i]] for i in tested], float).reshape(-1, 3)
    figure, axes = canvas(height=3.2)
    at = np.arange(len(tested))
    if len(tested) <= _BARS:
        axes.bar(at, values[:, 0], width=0.75, color=BLUE, alpha=0.85, label="personal model")
        size = max(12, min(36, 700 / max(len(tested), 1)))
        around: Any = {"s": size, "edgecolor": PAGE, "linewidth": 0.8, "zorder": 3}
        axes.scatter(at - 0.16, values[:, 1], marker="D", facecolor=ORANGE, label="zero-shot", **around)
        if shares:
            axes.scatter(at + 0.16, values[:, 2], marker="o", facecolor=INK, label="the federation's model", **around)
        axes.set_xticks(at, [str(ids[i]) for i in tested], fontsize=9 if len(tested) <= 25 else 6)
        axes.set(xlabel="client, from worst to best")
    else:
        some = np.unique(np.linspace(0, len(tested) - 1, _POINTS).astype(int))
        at = some
        axes.fill_between(at, values[some, 0], color=BLUE, alpha=0.85, linewidth=0, label="personal model")
        axes.plot(at, values[some, 1], ".", color=ORANGE, markersize=2, label="zero-shot")
        if shares:
            axes.plot(at, values[some, 2], ".", color=INK, markersize=2, label="the federation's model")
        axes.set(xlabel=f"{len(tested):,} clients, from worst to best")
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="accuracy on own images, %", ylim=(0, 100))
    figure.legend(loc="outside upper left", ncols=3, fontsize=8, handlelength=1.2)
    gained = values[:, 0] - values[:, 1]
    called = [name(ids[i]) for i in tested]
    return Chart("clients", "Accuracy of each client", svg(figure, "clients"), _gains(gained, called))


def _gains(gained: Float[np.ndarray, " clients"], names: Sequence[str]) -> str:
    """Who gained over zero-shot and who lost, and how much, in points."""
    if len(gained) == 1:
        return f"Client {names[0]}, the only one that is scored: {gained[0]:+.1f} points over zero-shot."
    said = f"{np.sum(gained > 0)} of {len(gained)} clients gained over zero-shot, {np.sum(gained < 0)} lost"
    if len(gained):
        worst, best = int(np.argmin(gained)), int(np.argmax(gained))
        low, high = f"{gained[worst]:+.1f}", f"{gained[best]:+.1f}"
        said += f"; from {low} points (client {names[worst]}) to {high} (client {names[best]})" * (low != high)
        said += f"; each by {low} points" * (low == high and bool(gained.any()))
    return f"{said}."


@for_page
def owners(found: Evidence, class_names: Sequence[str], clients: int, name: Callable[[int], str]) -> Chart:
    """Who owns what: training images, and to the right of them test images."""
    most_common = np.sort(np.argsort(-found.train.sum(axis=0), kind="stable")[:_CLASSES])
    many, classes = len(found.owners), len(most_common)
    figure, axes = canvas(width=max(WIDTH, 1.8 + 0.26 * many), height=1.1 + 0.2 * classes)
    largest = max(int(found.train.max()), 1)
    for counts, color, aside in (
        (found.train[:, most_common], BLUE, -0.14),
        (found.test[:, most_common], ORANGE, 0.26),
    ):
        k, c = np.nonzero(counts)
        axes.scatter(k + aside, c, 150 * counts[k, c] / largest, color=color, alpha=0.8, linewidth=0)
    axes.set_yticks(range(classes), [class_names[c] for c in most_common], fontsize=8)
    axes.set_xticks(range(many), [str(owner) for owner in found.owners], fontsize=8)
    axes.set(xlim=(-0.7, many - 0.3), ylim=(classes - 0.4, -0.6), xlabel="client")
    of = f"{many} of the clients that are scored, of {clients:,} in all. " if many < clients else ""
    of += f"The {classes} most common of {len(class_names)} classes. " if classes < len(class_names) else ""
    said = (
        f"{of}Blue: training images, the largest bubble {largest}; orange: test images. "
        f"{_sizes(found.train, [name(int(owner)) for owner in found.owners])}"
    )
    return Chart("owners", "Who owns what", svg(figure, "owners"), said, wide=many > 16)


def _sizes(train: Int[np.ndarray, "owners classes"], names: Sequence[str]) -> str:
    """Who has the fewest training images and who the most, and of how many classes."""
    sizes, kinds = train.sum(axis=1).tolist(), np.count_nonzero(train, axis=1).tolist()
    small, large = int(np.argmin(sizes)), int(np.argmax(sizes))
    if len(names) == 1:
        return f"Client {names[0]} has {_counted(sizes[0], 'image')} of {_counted(kinds[0], 'class')}."
    if sizes[small] == sizes[large]:
        said = f"Each client has {_counted(sizes[0], 'image')}"
    else:
        said = f"Client {names[small]} has the fewest images ({sizes[small]}), {names[large]} the most ({sizes[large]})"
    if min(kinds) == max(kinds):
        return f"{said}; each owns {_counted(kinds[0], 'class')}."
    return f"{said}; half of the clients own {_counted(int(np.median(kinds)), 'class')} or fewer."


def _counted(count: int, what: str) -> str:
    """A number with its word, such as `1 class` and `2 classes`."""
    ending = "" if count == 1 else "es" if what.endswith("s") else "s"
    return f"{count} {what}{ending}"


@for_page
def confusion(found: Evidence, class_names: Sequence[str], shares: bool) -> Chart:
    """Guesses of the federation's model by true class, each row of 100 %."""
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    everything = np.zeros((len(class_names), len(class_names)), int)
    np.add.at(everything, (found.truth, found.guess), 1)
    off = everything * (1 - np.eye(len(class_names), dtype=int))
    shown = np.sort(np.argsort(-(off.sum(axis=0) + off.sum(axis=1)), kind="stable")[:_CLASSES])
    classes, names = len(shown), [class_names[c] for c in shown]
    counts = everything[np.ix_(shown, shown)]
    rows = counts / np.maximum(everything.sum(axis=1)[shown, None], 1)
    side = 2.0 + 0.21 * max(classes, 8)
    figure, axes = canvas(width=max(side + 0.4, WIDTH), height=side)
    cells = [(row, column) for row, column in np.ndindex(rows.shape) if counts[row, column]]
    colors = [to_rgba(BLUE if r == c else ORANGE, 0.12 + 0.88 * rows[r, c]) for r, c in cells]
    squares = [Rectangle((c - 0.46, r - 0.46), 0.92, 0.92) for r, c in cells]
    axes.add_collection(PatchCollection(squares, facecolors=colors, edgecolors="none"))
    if classes <= 20:
        for r, c in cells:
            color = PAGE if rows[r, c] > 0.55 else INK
            axes.text(c, r, f"{100 * rows[r, c]:.0f}", ha="center", va="center", fontsize=6, color=color)
    axes.set_yticks(range(classes), names, fontsize=7)
    axes.set_xticks(range(classes), names, fontsize=7, rotation=90)
    axes.set(xlim=(-0.5, classes - 0.5), ylim=(classes - 0.5, -0.5), xlabel="guess", ylabel="truth")
    axes.grid(visible=False)
    said = "Rows are of 100 %: blue right, orange wrong. "
    said += f"The {classes} most confused of {len(class_names)} classes. " if classes < len(class_names) else ""
    said += f"{np.trace(everything):,} of {everything.sum():,} images are right"
    if off.any():
        row, column = divmod(int(np.argmax(off)), len(class_names))
        said += (
            f"; most often mistaken is {class_names[row]} for {class_names[column]} "
            f"({off[row, column]} of {everything[row].sum()})"
        )
    of = "the federation's model" if shares else "zero-shot CLIP, as this method shares nothing"
    return Chart("confusion", f"Confusion on pooled images, {of}", svg(figure, "confusion"), f"{said}.", classes > 16)


@for_page
def texts(found: Evidence, class_names: Sequence[str], name: Callable[[int], str] = str) -> Chart | None:
    """Text features of each class in two dimensions, and how far private prompts moved from the shared one."""
    if not len(found.shared) or not len(found.private):
        return None
    groups = [found.zero_shot, found.shared, *found.private]
    everything = np.concatenate(groups)
    # Principal components: the two directions in which all of these features differ most.
    centred = everything - everything.mean(axis=0)
    _, spread, directions = np.linalg.svd(centred, full_matrices=False)
    flat = np.split(centred @ directions[:2].T, len(groups))
    figure, axes = canvas(height=4.0)
    axes.scatter(*flat[0].T, 14, marker="x", color=MUTED, linewidth=1, label="zero-shot")
    axes.scatter(*flat[1].T, 34, color=BLUE, label="shared")
    for client, points, color in zip(found.movers, flat[2:], (ORANGE, GREEN, PURPLE, GOLD), strict=False):
        axes.scatter(*points.T, 16, facecolor="none", edgecolor=color, linewidth=1.2, label=f"client {client}")
        for one, other in zip(flat[1], points, strict=True):
            axes.plot(*zip(one, other, strict=True), color=color, linewidth=0.6, alpha=0.5)
    cosines = np.einsum("ce,kce->kc", found.shared, found.private)
    shown = np.argsort(cosines.mean(axis=0))[:_NAMED]
    for c in shown:
        axes.annotate(class_names[c], flat[1][c], xytext=(4, 3), textcoords="offset points", fontsize=7)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.margins(0.12)
    axes.spines[["bottom", "left"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=6, fontsize=8, handlelength=1, columnspacing=1)
    client, c = divmod(int(np.argmin(cosines)), len(class_names))
    share = float((spread[:2] ** 2).sum() / (spread**2).sum())
    said = (
        f"The two directions that differ most hold {percent(share)} % of the variance. Between shared and private "
        f"texts the mean cosine is {cosines.mean():.3f}; farthest moved is {class_names[c]} of client "
        f"{name(int(found.movers[client]))} ({cosines[client, c]:.3f})."
    )
    return Chart("texts", "Where the prompts put the classes", svg(figure, "texts"), said)


@for_page
def seconds(spent: dict[str, float]) -> Chart:
    """Wall-clock time by phase."""
    figure, axes = canvas(height=0.7 + 0.32 * len(spent))
    names, values = [*spent], [*spent.values()]
    axes.barh(range(len(names)), values, height=0.6, color=BLUE, alpha=0.85)
    for at, value in enumerate(values):
        axes.text(value, at, f" {value:,.1f} s", va="center", fontsize=8)
    axes.set_yticks(range(len(names)), names)
    axes.set_xticks([])
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)
    axes.set_xlim(0, 1.2 * max(*values, 1e-9))
    most = max(spent, key=lambda phase: spent[phase])
    said = f"{sum(values):,.1f} s in all, of which {most} took {percent(spent[most] / max(sum(values), 1e-9))} %."
    return Chart("seconds", "Seconds by phase", svg(figure, "seconds"), said)


@for_page
def side_by_side(runs: dict[str, Sequence[dict[str, Any]]], part: tuple[str, str], title: str, name: str) -> Chart:
    """One accuracy of several runs by round; `part` is where it stands in a line."""
    curves = any(len(lines) > 1 for lines in runs.values())
    figure, axes = canvas(height=HEIGHT if curves else 1.6 + 0.3 * len(runs))
    ends = []
    for (label, lines), color in zip(runs.items(), (SERIES * (len(runs) // len(SERIES) + 1)), strict=False):
        points = [(line["round"], 100 * line[part[0]][part[1]]) for line in lines]
        if curves:
            axes.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, linewidth=1.6, label=label)
        else:
            axes.barh(-len(ends), points[-1][1], height=0.6, color=color, alpha=0.85, label=label)
            axes.text(points[-1][1], -len(ends), f" {points[-1][1]:.1f}", va="center", fontsize=8)
        ends.append((points[-1][1], label))
    if curves:
        axes.set(ylabel="accuracy, %")
        _round_axis(axes)
    else:
        axes.grid(axis="y", visible=False)
        axes.set(xlabel="accuracy, %", xlim=(0, 110), xticks=range(0, 101, 20), yticks=[])
    figure.legend(loc="outside lower left", ncols=1 if len(runs) < 3 else 2, fontsize=7, handlelength=1.2)
    ends.sort(reverse=True)
    (most, best), (least, worst) = ends[0], ends[-1]
    if len(ends) == 1:
        said = f"At the end {best} stands at {most:.1f} %."
    elif f"{most:.1f}" == f"{least:.1f}":
        said = f"At the end all {len(ends)} stand at {most:.1f} %."
    else:
        said = f"At the end {best} stands highest ({most:.1f} %) and {worst} lowest ({least:.1f} %)."
    return Chart(name, title, svg(figure, name), said)


def _round_axis(axes, **locator: int) -> None:
    """Whole numbers from 0: without 0, few rounds would span less than two of them, and ticks would be fractions."""
    axes.set(xlabel="round")
    axes.set_xlim(left=0)
    axes.xaxis.get_major_locator().set_params(integer=True, **locator)


def _accuracies(axes, at, lines: Sequence[dict[str, Any]], zero: dict[str, Any], shares: bool) -> None:
    own = [line["personalised"] for line in lines]
    mean, worst = (100 * np.array([part[key] for part in own]) for key in ("mean", "worst_decile"))
    best = 100 * np.array([part.get("best", part["mean"]) for part in own])
    axes.fill_between(at, worst, best, color=BLUE, alpha=0.13, linewidth=0)
    axes.plot(at, mean, "o-", color=BLUE, markersize=3, linewidth=1.8)
    ends = [(mean[-1], "personal, mean", BLUE), (worst[-1], "worst tenth", BLUE)]
    axes.plot(at, worst, color=BLUE, linewidth=0.8)
    if shares:
        pooled = 100 * np.array([line["global"]["accuracy"] for line in lines])
        axes.plot(at, pooled, "o-", color=ORANGE, markersize=3, linewidth=1.8)
        ends.append((pooled[-1], "federation, pooled", ORANGE))
    start = 100 * zero["on_clients"]["mean"]
    axes.axhline(start, color=MUTED, linewidth=1, linestyle=(0, (3, 3)))
    ends.append((start, "zero-shot", MUTED))
    axes.set(ylabel="accuracy, %", ylim=(0, 100))
    axes.margins(x=0.02)
    _label_ends(axes, at[-1], ends)


def _at_the_end(line: dict[str, Any], zero: dict[str, Any], shares: bool) -> Any:
    """Bars of what a single evaluation found: there is no course to draw."""
    own = line["personalised"]
    bars = [("zero-shot, own images", zero["on_clients"]["mean"], MUTED), ("personal, mean", own["mean"], BLUE)]
    bars.append(("personal, worst tenth", own["worst_decile"], BLUE))
    if shares:
        bars.append(("federation, pooled", line["global"]["accuracy"], ORANGE))
    figure, axes = canvas(height=0.7 + 0.36 * len(bars))
    for at, (_, value, color) in enumerate(bars):
        axes.barh(at, 100 * value, height=0.6, color=color, alpha=0.85)
        axes.text(100 * value, at, f" {percent(value)}", va="center", fontsize=8)
    axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlabel="accuracy, %", xlim=(0, 110), xticks=range(0, 101, 20))
    return figure


def _label_ends(axes, right: float, ends: list[tuple[float, str, str]]) -> None:
    """Names beside the ends of lines, pushed apart where they would overlap."""
    gap = 6.5  # percent of accuracy that a line of text takes
    ends = sorted(ends)
    places = [value for value, _, _ in ends]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + gap)
    if (over := places[-1] - 98) > 0:
        places = [place - over for place in places]
    for place, (_, text, color) in zip(places, ends, strict=True):
        axes.annotate(
            text, (right, place), xytext=(10, 0), textcoords="offset points", va="center", fontsize=8, color=color,
            annotation_clip=False,
        )  # fmt: skip


def _unit(most: float) -> tuple[float, str]:
    for size, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if most >= size:
            return size, name
    return 1.0, "bytes"

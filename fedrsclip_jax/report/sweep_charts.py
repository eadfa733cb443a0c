"""Pictures of a sweep: its rows side by side, accuracy along each key, and a heat map where two keys are crossed.

All are of accuracy on the clients' own images, mean and standard deviation over seeds; for the page as SVG in its own
colours, for the folder as PNGs on white.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from fedrsclip_jax.report.drawing import (
    BLUE,
    PAGE_INKS,
    SERIES,
    WHITE_INKS,
    WIDTH,
    Chart,
    Inks,
    canvas,
    png,
    styled,
    svg,
)
from fedrsclip_jax.report.percent import percent

T = TypeVar("T")
_ROWS = 60  # of more rows a picture side by side says nothing
_LINES = 12  # that a legend names


@dataclass(frozen=True)
class _Point:
    """What a row's seeds gave; fractions."""

    label: str
    values: dict[str, Any]
    own: tuple[float, ...]
    zero_shot: float

    @property
    def mean(self) -> float:
        return float(np.mean(self.own))

    @property
    def std(self) -> float:
        return float(np.std(self.own, ddof=1)) if len(self.own) > 1 else 0.0


@dataclass(frozen=True)
class _Drawing:
    """A picture before it is drawn: `draw` is given the axes and the colours."""

    name: str
    title: str
    said: str
    draw: Callable[[Any, Inks], None]
    width: float = WIDTH
    height: float = 3.2


def charts(result: dict[str, Any]) -> list[Chart]:
    """For the page; `result` is what `sweep.json` says."""

    def chart(drawing: _Drawing) -> Chart:
        drawn = _drawn(drawing, PAGE_INKS, lambda figure: svg(figure, drawing.name))
        return Chart(drawing.name, drawing.title, drawn, drawing.said, wide=drawing.width > WIDTH)

    return [chart(drawing) for drawing in _drawings(result)]


def pictures(result: dict[str, Any]) -> dict[str, bytes]:
    """PNGs by name."""
    return {drawing.name: _drawn(drawing, WHITE_INKS, png) for drawing in _drawings(result)}


def _drawn(drawing: _Drawing, inks: Inks, written: Callable[[Any], T]) -> T:
    with styled(inks):
        figure, axes = canvas(width=drawing.width, height=drawing.height)
        drawing.draw(axes, inks)
        return written(figure)


def _drawings(result: dict[str, Any]) -> Iterator[_Drawing]:
    points = _points(result)
    if not points:
        return
    own = f"accuracy on clients' own {result['split']} images, %"
    high, low = (choose(points, key=lambda point: point.mean) for choose in (max, min))
    extremes = (
        f"Highest is {high.label} with {percent(high.mean)} %, lowest {low.label} with {percent(low.mean)} %; mean and "
        f"standard deviation over {len(result['seeds'])} seed{'s' * (len(result['seeds']) != 1)}."
    )
    if 1 < len(points) <= _ROWS:
        longest = max(len(point.label) for point in points)
        yield _Drawing(
            "rows", "Rows side by side", extremes, lambda axes, inks: _draw_rows(axes, points, own, inks),
            width=WIDTH if longest < 28 else 8.0, height=1.0 + 0.26 * len(points),
        )  # fmt: skip
    varied = [key for key in result["varied"] if len({str(point.values.get(key)) for point in points}) > 1]
    for key in varied:
        if lines := _lines(points, key, varied):
            yield _Drawing(
                f"by_{key}", f"Along {key}", _said_of_lines(lines, key),
                lambda axes, inks, key=key, lines=lines: _draw_lines(axes, lines, key, own, inks),
            )  # fmt: skip
    if len(varied) == 2:
        # Of all rows: where no run came to its end, the map says so.
        sides = [list(dict.fromkeys(row["values"][key] for row in result["rows"])) for key in varied]
        crossed = {tuple(row["values"][key] for key in varied) for row in result["rows"]}
        cells = {tuple(point.values[key] for key in varied): point for point in points}
        if len(crossed) == len(sides[0]) * len(sides[1]):
            yield _Drawing(
                "heat_map", f"{varied[0]} and {varied[1]}", f"{own.capitalize().removesuffix(', %')}, in %. {extremes}",
                lambda axes, inks: _draw_heat_map(axes, cells, sides, varied, inks),
                height=1.0 + 0.42 * len(sides[0]),
            )  # fmt: skip


def _points(result: dict[str, Any]) -> list[_Point]:
    """Of the rows of which a run came to its end."""
    points = []
    for row in result["rows"]:
        summaries = [run["summary"] for run in row["runs"] if run["summary"]]
        if summaries:
            zero = float(np.mean([summary["zero_shot"]["on_clients"]["mean"] for summary in summaries]))
            own = tuple(summary["personalised"]["mean"] for summary in summaries)
            points.append(_Point(row["label"], row["values"], own, zero))
    return points


def _lines(points: Sequence[_Point], key: str, varied: Sequence[str]) -> dict[str, list[_Point]]:
    """Rows that differ in one key alone, by what they have in common; no lines of a single point."""
    others = [other for other in varied if other != key]
    groups: dict[tuple[str, ...], list[_Point]] = {}
    for point in points:
        groups.setdefault(tuple(str(point.values.get(other)) for other in others), []).append(point)
    kept = {values: _in_order(line, key) for values, line in groups.items() if len(line) > 1}
    telling = [i for i in range(len(others)) if len({values[i] for values in kept}) > 1]
    lines = {}
    for values, line in kept.items():
        shared = [part for part in line[0].label.split(", ") if all(part in p.label.split(", ") for p in line)]
        said = [f"{others[i].rpartition('.')[2]}={values[i]}" for i in telling]
        lines[", ".join(shared if len(shared) >= len(said) else said)] = line
    return lines if len(lines) == len(kept) else {", ".join(values): line for values, line in kept.items()}


def _in_order(line: list[_Point], key: str) -> list[_Point]:
    """By the key's numbers; other values as they stand in the sweep."""
    return sorted(line, key=lambda point: point.values[key]) if _numeric(line, key) else line


def _numeric(line: Sequence[_Point], key: str) -> bool:
    values = [point.values[key] for point in line]
    return all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values)


def _said_of_lines(lines: dict[str, list[_Point]], key: str) -> str:
    if len(lines) == 1:
        ((name, line),) = lines.items()
        said = ", ".join(f"{percent(point.mean)} % at {point.values[key]}" for point in line)
        said = f"{name}: {said}" if name else said
    else:
        best = [str(max(line, key=lambda point: point.mean).values[key]) for line in lines.values()]
        wins = sorted(((best.count(value), value) for value in dict.fromkeys(best)), reverse=True)
        where = " and ".join(f"at {value} on {count}" for count, value in wins)
        said = f"A line's highest mean is {where} of {len(lines)}"
    return f"{said}; bars are standard deviations over seeds."


def _draw_rows(axes: Any, points: Sequence[_Point], own: str, inks: Inks) -> None:
    at = np.arange(len(points))
    mean, std = (100 * np.array([getattr(point, name) for point in points]) for name in ("mean", "std"))
    axes.errorbar(mean, at, xerr=std, fmt="o", color=BLUE, markersize=5, linewidth=1.4, label="mean ± deviation")
    zero = [100 * point.zero_shot for point in points]
    axes.scatter(zero, at, marker="x", color=inks.muted, s=22, linewidth=1, label="zero-shot")
    axes.set_yticks(at, [point.label for point in points], fontsize=8)
    axes.set(xlabel=own, ylim=(len(points) - 0.5, -0.5))
    axes.grid(axis="y", visible=False)
    axes.figure.legend(loc="outside upper right", ncols=2, fontsize=8, handlelength=1.2)


def _draw_lines(axes: Any, lines: dict[str, list[_Point]], key: str, own: str, inks: Inks) -> None:
    values = list(dict.fromkeys(point.values[key] for line in lines.values() for point in line))
    numeric = all(_numeric(line, key) for line in lines.values())
    aside = (np.arange(len(lines)) - (len(lines) - 1) / 2) * (0.0 if numeric else 0.5 / max(len(lines), 1))
    for number, (name, line) in enumerate(lines.items()):
        at = [point.values[key] if numeric else values.index(point.values[key]) + aside[number] for point in line]
        mean, std = (100 * np.array([getattr(point, part) for point in line]) for part in ("mean", "std"))
        dashes = ("-", "--", ":")[number // len(SERIES) % 3] if numeric else "none"
        axes.errorbar(
            at, mean, std, fmt="o", linestyle=dashes, color=SERIES[number % len(SERIES)], markersize=4, linewidth=1.4,
            label=name,
        )  # fmt: skip
    # Partitions may differ along a key, and with them what zero-shot is right on.
    drawn = [point for line in lines.values() for point in line]
    places = sorted({point.values[key] for point in drawn} if numeric else range(len(values)))
    there = [
        [p.zero_shot for p in drawn if (p.values[key] if numeric else values.index(p.values[key])) == at]
        for at in places
    ]
    zero = [100 * float(np.mean(at)) for at in there]
    axes.plot(places, zero, color=inks.muted, linewidth=1, linestyle=(0, (3, 3)), label="zero-shot")
    if not numeric:
        axes.set_xticks(range(len(values)), [str(value) for value in values])
    axes.set(xlabel=key, ylabel=own.replace("own ", "own\n"))
    if len(lines) <= _LINES:
        handles, names = axes.get_legend_handles_labels()  # lines without bars stand first there, and here last
        handles, names = handles[1:] + handles[:1], names[1:] + names[:1]
        axes.figure.legend(handles, names, loc="outside upper left", ncols=2, fontsize=7, handlelength=1.6)


def _draw_heat_map(
    axes: Any, cells: dict[tuple[Any, ...], _Point], sides: Sequence[Sequence[Any]], varied: Sequence[str], inks: Inks
) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.colors import to_rgba
    from matplotlib.patches import Rectangle

    down, across = sides
    means = np.array(
        [[cells[at].mean if (at := (row, column)) in cells else np.nan for column in across] for row in down]
    )
    share = (means - np.nanmin(means)) / max(float(np.nanmax(means) - np.nanmin(means)), 1e-9)
    places = [at for at in np.ndindex(means.shape) if np.isfinite(means[at])]
    squares = [Rectangle((column - 0.48, row - 0.48), 0.96, 0.96) for row, column in places]
    colors = [to_rgba(BLUE, 0.08 + 0.92 * share[at]) for at in places]
    axes.add_collection(PatchCollection(squares, facecolors=colors, edgecolors="none"))
    for row, column in places:
        color = inks.page if share[row, column] > 0.55 else inks.ink
        axes.text(column, row, f"{100 * means[row, column]:.1f}", ha="center", va="center", color=color)
    for row, column in np.argwhere(np.isnan(means)):
        axes.text(column, row, "diverged", ha="center", va="center", color=inks.muted, fontsize=8)
    axes.set_xticks(range(len(across)), [str(value) for value in across])
    axes.set_yticks(range(len(down)), [str(value) for value in down])
    axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(len(down) - 0.5, -0.5), xlabel=varied[1], ylabel=varied[0])
    axes.grid(visible=False)
    axes.spines[["bottom", "left"]].set_visible(False)

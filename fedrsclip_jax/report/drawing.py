"""How charts are drawn: colours, style, and the two forms, SVG for the report's page and PNG on white.

Drawn by matplotlib. In SVG, marker colours are replaced by the page's variables, so that charts follow light and dark,
and texts stay texts.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")

# Colour-blind safe (Okabe and Ito 2008), and three of the page; the page gives each in light and dark.
INK, MUTED, GRID, PAGE = "#010101", "#020202", "#030303", "#040404"
BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY = "#0072b2", "#d55e00", "#009e73", "#aa4499", "#b8860b", "#56b4e9"
VARIABLES = {
    INK: "ink", MUTED: "muted", GRID: "grid", PAGE: "page",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple",
    GOLD: "gold", SKY: "sky",
}  # fmt: skip
SERIES = (BLUE, ORANGE, GREEN, PURPLE, GOLD, SKY)


class Inks(NamedTuple):
    """Colours of what is no data."""

    ink: str
    muted: str
    grid: str
    page: str


PAGE_INKS = Inks(INK, MUTED, GRID, PAGE)  # which `svg` replaces by the page's
WHITE_INKS = Inks("#16191d", "#5c6570", "#dde1e6", "#ffffff")
WIDTH, HEIGHT = 5.2, 3.0  # inches: on a phone, too, texts keep about their size


@dataclass(frozen=True)
class Chart:
    """One figure.

    Attributes:
      name: distinguishes its parts from other figures' on the page.
      title: of the figure.
      svg: drawing.
      said: one sentence on what it shows, which also serves who cannot see it.
      wide: whether it needs the page's whole width, and more than a phone's.
    """

    name: str
    title: str
    svg: str
    said: str
    wide: bool = False


@contextmanager
def styled(inks: Inks) -> Iterator[None]:
    """Within it, figures have the report's style; matplotlib's settings are then as they were."""
    import matplotlib

    style: Any = {
        "font.size": 9,
        "font.family": "sans-serif",
        "svg.fonttype": "none",
        "text.parse_math": False,  # a class name may hold a dollar
        "text.color": inks.ink,
        "axes.edgecolor": inks.grid,
        "axes.labelcolor": inks.muted,
        "axes.titlecolor": inks.ink,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": inks.grid,
        "grid.linewidth": 0.6,
        "xtick.color": inks.muted,
        "ytick.color": inks.muted,
        "xtick.major.size": 0,
        "ytick.major.size": 0,
        "figure.facecolor": "none",
        "axes.facecolor": "none",
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        yield


def for_page(draw: Callable[..., T]) -> Callable[..., T]:
    """Has a chart drawn in the page's style."""

    @functools.wraps(draw)
    def drawn(*arguments: Any, **named: Any) -> T:
        with styled(PAGE_INKS):
            return draw(*arguments, **named)

    return drawn


def canvas(columns: int = 1, width: float = WIDTH, height: float = HEIGHT):
    """A figure and its axes; inches."""
    from matplotlib.figure import Figure  # no window, no global state

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def svg(figure, name: str) -> str:
    """The drawing alone, for use within a page: its ids are its own, its colours and fonts the page's."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    out = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # the reader's fonts draw the texts
        # Drawn once: `savefig` draws a figure a first time for its layout, which the drawing itself does as well.
        FigureCanvasSVG(figure).print_svg(out, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'xlink:href="#', f'xlink:href="#{name}-', text)
    text = re.sub(r"url\(#", f"url(#{name}-", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for color, variable in VARIABLES.items():
        text = text.replace(color, f"var(--{variable})")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    opening = f'<svg viewBox="0 0 {size[1]} {size[2]}" aria-hidden="true" xmlns:xlink="http://www.w3.org/1999/xlink">'
    return opening + text[text.index(">") + 1 :]


def png(figure) -> bytes:
    """On white."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(out, format="png", dpi=160, facecolor="white")
    return out.getvalue()

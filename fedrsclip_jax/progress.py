"""What a person sees while a run works: a live bar in a terminal, a plain line now and then elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

PLAIN_SECONDS = 60.0  # between lines where there is no terminal, in logs of Slurm or CI
_MEMORY = 3600.0  # seconds of the past that the time left is reckoned from: a dispatch or a batch may take minutes


class Bar:
    """One phase of a run that counts to a known total."""

    def __init__(self, report):
        self._report = report

    def advance_to(self, done: int, **figures: float | str) -> None:
        """`done` of the total are finished; `figures` are shown beside it by name."""
        self._report(done, figures)


class Whole:
    """Work in several phases, and the time that is left of all of it at the pace so far."""

    def __init__(self, total: int):
        """
        Args:
          total: units of all phases together.
        """
        self.total, self.done = total, 0
        self._began = time.monotonic()

    def skip(self, units: int) -> None:
        """Some are done already, in no time."""
        self.total -= units

    @property
    def left(self) -> float | None:
        """Seconds; None before anything is done."""
        if not self.done:
            return None
        return (time.monotonic() - self._began) / self.done * max(self.total - self.done, 0)

    def counting(self, bar: Bar, start: int, weight: int) -> Bar:
        """A bar whose every unit is `weight` of this, and which says what is left of all."""
        reached = start

        def report(done: int, figures: dict[str, float | str]) -> None:
            nonlocal reached
            self.done, reached = self.done + weight * (done - reached), done
            bar.advance_to(done, **figures, left_of_all=duration(self.left or 0.0))

        return Bar(report)


class Progress:
    """Progress on one console, by default standard error; quiet=True says nothing."""

    def __init__(
        self, *, quiet: bool = False, console: Console | None = None, place: str = "", whole: Whole | None = None
    ):
        """
        Args:
          place: said before the name of every phase.
          whole: the work of which phases are parts, for the time that is left of all.
        """
        self.quiet, self.place, self.whole = quiet, place, whole
        self.console = console or Console(stderr=True, highlight=False)
        self._said: set[str] = set()

    def program(self, number: int, of: int, whole: Whole) -> "Progress":
        """That of one program of several, from 1, which are parts of a whole; it says which."""
        part = Progress(quiet=self.quiet, console=self.console, place=f"program {number} of {of}: ", whole=whole)
        part._said = self._said
        return part

    def part(self, number: int, of: int) -> "Progress":
        """That of one run of several, from 1; it says which."""
        part = Progress(quiet=self.quiet, console=self.console, place=f"{number}/{of} " if of > 1 else "")
        part._said = self._said
        return part

    def say(self, text: str, once: str = "") -> None:
        """One plain line.

        Args:
          once: what it is about; of all parts, the first one says it.
        """
        if not self.quiet and once not in self._said:
            self.console.print(text, markup=False, soft_wrap=True)
            self._said |= {once} - {""}

    @contextmanager
    def track(self, name: str, total: int, unit: str, done: int = 0, waits: str = "", weight: int = 0) -> Iterator[Bar]:
        """A bar for the body of a `with`.

        Args:
          done: of `total`, finished before; they say nothing of the time left.
          waits: what is shown until the first report.
          weight: of a unit in the whole work, if there is such.
        """
        whole = self.whole if weight else None
        with self._bar(f"{self.place}{name}", total, unit, done, waits) as bar:
            yield bar if whole is None else whole.counting(bar, done, weight)

    @contextmanager
    def _bar(self, name: str, total: int, unit: str, done: int, waits: str) -> Iterator[Bar]:
        if self.quiet:
            yield Bar(lambda done, figures: None)
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=8),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(elapsed_when_finished=True),
                _Figures(),
            )
            with RichProgress(*columns, console=self.console, speed_estimate_period=_MEMORY) as live:
                task = live.add_task(name, total=total, completed=done, figures=waits)
                yield Bar(lambda done, figures: live.update(task, completed=done, figures=_line(figures)))
        else:
            plain = _Plain(self, name, total, unit, done, waits)
            with _repeated(plain.again):
                yield Bar(plain)


def duration(seconds: float) -> str:
    """A time for people, in the unit that suits it."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Figures(ProgressColumn):
    """As many of the figures as a narrow terminal has room for, on one line."""

    def render(self, task: Task) -> Text:
        return Text(task.fields["figures"], no_wrap=True, overflow="ellipsis")


@contextmanager
def _repeated(function: Callable[[], None]) -> Iterator[None]:
    """Calls a function every PLAIN_SECONDS, on a thread of its own, until the body ends."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(PLAIN_SECONDS):
            function()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class _Plain:
    """The first line and the last one, and between them one every PLAIN_SECONDS, also while nothing gets done."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str, done: int, waits: str):
        self.progress, self.name, self.total, self.unit = progress, name, total, unit
        self.began, self.last = time.monotonic(), -math.inf
        self.reached = self.began  # when `done` was
        self.done, self.figures = done, waits
        self.lock = threading.Lock()
        self.first: tuple[int, float] | None = None  # until then a program was compiled, which no later round does

    def __call__(self, done: int, figures: dict[str, float | str]) -> None:
        with self.lock:
            if done == self.done:
                return
            self.done, self.figures, self.reached = done, _line(figures), time.monotonic()
            self.first = self.first or (done, self.reached)
            if self.reached - self.last >= PLAIN_SECONDS or done >= self.total:
                self._say(self.reached)

    def again(self) -> None:
        """Says how it stands, if nothing was said for long, as while a program compiles."""
        with self.lock:
            now = time.monotonic()
            if now - max(self.last, self.began) >= PLAIN_SECONDS and self.done < self.total:
                self._say(now)

    def _say(self, now: float) -> None:
        self.last = now
        line = f"{self.name}: {self.done}/{self.total} {self.unit}, {duration(now - self.began)}"
        if self.first is not None and self.done > self.first[0]:
            left = (self.reached - self.first[1]) / (self.done - self.first[0]) * (self.total - self.done)
            line += f", {duration(max(left - (now - self.reached), 0))} left"
        self.progress.say("  ".join(part for part in (line, self.figures) if part))


def _line(figures: dict[str, float | str]) -> str:
    said = {name: value if isinstance(value, str) else _short(value) for name, value in figures.items()}
    return "  ".join(f"{name.replace('_', ' ')} {value}" for name, value in said.items())


def _short(value: float) -> str:
    for step, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step:
            return f"{value / step:.1f} {letter}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"

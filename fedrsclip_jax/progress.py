"""What a person sees while a run works: a live bar in a terminal, a plain line now and then elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 20.0  # between lines where there is no terminal, in logs of Slurm or CI


class Bar:
    """One phase of a run that counts to a known total."""

    def __init__(self, report):
        self._report = report

    def advance_to(self, done: int, **figures: float) -> None:
        """`done` of the total are finished; `figures` are shown beside it by name."""
        self._report(done, figures)


class Progress:
    """Progress on one console, by default standard error; quiet=True says nothing."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None):
        self.quiet = quiet
        self.console = console or Console(stderr=True, highlight=False)

    def say(self, text: str) -> None:
        """One plain line."""
        if not self.quiet:
            self.console.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def track(self, name: str, total: int, unit: str) -> Iterator[Bar]:
        """A bar for the body of a `with`."""
        if self.quiet:
            yield Bar(lambda done, figures: None)
        elif self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TextColumn(unit),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
            )
            with RichProgress(*columns, console=self.console) as live:
                task = live.add_task(name, total=total, figures="")
                yield Bar(lambda done, figures: live.update(task, completed=done, figures=_line(figures)))
        else:
            yield Bar(_Plain(self, name, total, unit))


class _Plain:
    """A line at most every PLAIN_SECONDS, and one at the end."""

    def __init__(self, progress: Progress, name: str, total: int, unit: str):
        self.progress, self.name, self.total, self.unit = progress, name, total, unit
        self.began = self.last = time.monotonic()
        self.done = 0

    def __call__(self, done: int, figures: dict[str, float]) -> None:
        now = time.monotonic()
        if done == self.done or (now - self.last < PLAIN_SECONDS and done < self.total):
            return
        self.last, self.done = now, done
        elapsed = now - self.began
        left = elapsed / max(done, 1) * (self.total - done)
        line = f"{self.name}: {done}/{self.total} {self.unit}, {elapsed:.0f} s, {left:.0f} s left"
        self.progress.say("  ".join(part for part in (line, _line(figures)) if part))


def _line(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.replace('_', ' ')} {_short(value)}" for name, value in figures.items())


def _short(value: float) -> str:
    for step, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= step:
            return f"{value / step:.1f} {letter}"
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.3f}"

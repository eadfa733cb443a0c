"""What is shown: plain lines where there is no terminal, a bar with figures where there is one, or nothing."""

import io

from rich.console import Console

from fedrsclip_jax import progress
from fedrsclip_jax.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rounds(stream: io.StringIO, *, quiet: bool = False) -> str:
    shown = Progress(quiet=quiet, console=Console(file=stream, highlight=False))
    with shown.track("training", 3, unit="rounds") as bar:
        for number in (1, 2, 3):
            bar.advance_to(number, loss=1.23456, clients_per_second=51.0, bytes_sent=2_048_000)
    return stream.getvalue()


def test_a_log_gets_one_line_for_a_short_phase():
    assert rounds(io.StringIO()).splitlines() == [
        "training: 3/3 rounds, 0 s, 0 s left  loss 1.235  clients per second 51  bytes sent 2.0 M"
    ]


def test_a_log_gets_lines_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    assert [line.split(",")[0] for line in rounds(io.StringIO()).splitlines()] == [
        f"training: {n}/3 rounds" for n in (1, 2, 3)
    ]


def test_a_terminal_shows_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    text = rounds(Terminal())
    for part in ("training", "3/3", "rounds", "loss 1.235", "clients per second 51", "bytes sent 2.0 M"):
        assert part in text


def test_quiet_says_nothing():
    assert rounds(io.StringIO(), quiet=True) == ""

"""What is shown: plain lines where there is no terminal, a bar with figures where there is one, or nothing."""

import io
import re
import time

import pytest
from rich.console import Console

from fedrsclip_jax import progress
from fedrsclip_jax.config import Config, resolve
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images, load_task


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def rounds(stream: io.StringIO, *, quiet: bool = False) -> str:
    shown = Progress(quiet=quiet, console=Console(file=stream, highlight=False))
    with shown.track("training", 3, unit="rounds", waits="compiling") as bar:
        for number in (1, 2, 3):
            bar.advance_to(number, loss=1.23456, clients_per_second=51.0, bytes_sent=2_048_000)
    return stream.getvalue()


def test_a_log_gets_the_first_line_and_the_last():
    figures = "loss 1.235  clients per second 51  bytes sent 2.0 M"
    assert rounds(io.StringIO()).splitlines() == [
        f"training: 1/3 rounds, 0 s  {figures}",
        f"training: 3/3 rounds, 0 s, 0 s left  {figures}",
    ]


def test_a_log_gets_a_line_a_minute_and_knows_the_time_left(monkeypatch):
    """Ten rounds of 25 s, after half an hour of compiling that no later round has; the first 40 were done before."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress(console=Console(file=stream, highlight=False)).part(2, 9)
    with shown.track("training", 50, unit="rounds", done=40) as bar:
        now[0] += 1800
        for number in range(41, 51):
            bar.advance_to(number)
            now[0] += 25
    assert stream.getvalue().splitlines() == [
        "2/9 training: 41/50 rounds, 30 min",
        "2/9 training: 44/50 rounds, 31 min, 2 min left",
        "2/9 training: 47/50 rounds, 32 min, 75 s left",
        "2/9 training: 50/50 rounds, 34 min, 0 s left",
    ]


def test_a_log_hears_of_a_phase_in_which_nothing_gets_done(monkeypatch):
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.01)
    stream = io.StringIO()
    shown = Progress(console=Console(file=stream, highlight=False))
    with shown.track("training", 3, unit="rounds", waits="compiling"):
        while stream.getvalue().count("\n") < 2:
            time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert all(re.fullmatch(r"training: 0/3 rounds, \d+ s  compiling", line) for line in lines)


def test_what_is_said_between_two_reports_is_the_last_of_them(monkeypatch):
    """Lines by the clock must not keep reports from being heard: a sweep once stood at its first round to its end."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown = Progress(console=Console(file=stream, highlight=False))
    plain = progress._Plain(shown, "training", 5, "rounds", 0, "compiling")
    for now[0], number in ((50, 1), (100, 2), (110, None), (150, 3), (170, None)):
        if number is None:
            plain.again()  # as its thread calls it, at a time of its own
        else:
            plain(number, {"loss": float(number)})
    assert stream.getvalue().splitlines() == [
        "training: 1/5 rounds, 50 s  loss 1",
        "training: 2/5 rounds, 2 min, 2 min left  loss 2",
        "training: 3/5 rounds, 3 min, 80 s left  loss 3",
    ]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (5940, "99 min"), (7500, "2 h 5 min")]
)
def test_times_are_for_people(seconds, said):
    assert progress.duration(seconds) == said


def test_a_terminal_shows_figures(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    text = rounds(Terminal())
    for part in ("training", "compiling", "3/3", "rounds", "loss 1.235", "clients per second 51", "bytes sent 2.0 M"):
        assert part in text


def test_quiet_says_nothing():
    assert rounds(io.StringIO(), quiet=True) == ""


def test_a_narrow_terminal_keeps_to_one_line(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", rounds(Terminal()))) if line]
    assert any("3/3 rounds" in line and "loss 1.235" in line for line in lines)
    assert all(line.startswith("training ") and len(line) <= 80 for line in lines)


def test_a_program_of_several_says_which_and_what_is_left_of_all(monkeypatch):
    """Two programs of ten rounds, of three runs and of one; the run of the second stands at round 4."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    shown, whole = Progress(console=Console(file=stream, highlight=False, width=200)), progress.Whole(40)
    with shown.program(1, 2, whole).track("3 runs", 10, unit="rounds", weight=3) as bar:
        for done in (5, 10):
            now[0] += 300.0
            bar.advance_to(done, loss=1.0)
    whole.skip(4)
    with shown.program(2, 2, whole).track("1 run", 10, unit="rounds", done=4, weight=1) as bar:
        now[0] += 60.0
        bar.advance_to(7)
    lines = stream.getvalue().splitlines()
    assert [line.split(":")[0] for line in lines] == ["program 1 of 2"] * 2 + ["program 2 of 2"]
    # 15 of 40 in 300 s, then 30 of 40 in 600 s, then 33 of 36 in 660 s.
    assert [line.rpartition("left of all ")[2] for line in lines] == ["8 min", "3 min", "60 s"]


def test_images_in_the_cache_are_not_said_to_be_encoded(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("FEDRSCLIP_CACHE", str(tmp_path))
    keys = {"backbone": str(tiny_folder), "data.scenes.count": "32", "data.image_size": "16"}
    config = resolve(Config, {}, [*keys.items()])
    task, said = load_task(config), []
    for kind in (io.StringIO, io.StringIO, Terminal):
        stream = kind()
        encode_images(config, task, Progress(console=Console(file=stream, highlight=False)))
        said.append(stream.getvalue())
    assert "encoding images: 32/32 images" in said[0]
    assert said[1:] == ["", ""]

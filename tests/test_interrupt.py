"""Signals sent to real processes: the first is a request, the second is the end."""

import signal
import subprocess
import sys
import threading

import pytest

from fedrsclip_jax.interrupt import Interrupt

WATCHES = """
import signal, sys, time
from fedrsclip_jax.interrupt import Interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests may run in the background
turns = 0
with Interrupt(quiet=len(sys.argv) > 2) as interrupt:
    assert (interrupt.requested, interrupt.exit_code) == (False, 0)
    print("ready", flush=True)
    while not interrupt.requested:
        time.sleep(0.01)
    try:
        print("requested", flush=True)
        if sys.argv[1] == "stays":
            time.sleep(600)
    except KeyboardInterrupt:
        print("at once", flush=True)
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
sys.exit(interrupt.exit_code)
"""
IGNORES = """
import os, signal
from fedrsclip_jax.interrupt import Interrupt
signal.signal(signal.SIGINT, signal.SIG_IGN)
with Interrupt() as interrupt:
    os.kill(os.getpid(), signal.SIGINT)
    assert not interrupt.requested
assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""


def started(*arguments: str) -> subprocess.Popen:
    run = subprocess.Popen(
        [sys.executable, "-c", WATCHES, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert line(run) == "ready"
    return run


def line(run: subprocess.Popen) -> str:
    assert run.stdout
    return run.stdout.readline().strip()


SENT = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])


@SENT
def test_the_first_signal_is_a_request(number, code):
    with started("leaves") as run:
        run.send_signal(number)
        out, err = run.communicate(timeout=300)
    assert out == "requested\n"
    assert run.returncode == code
    assert err.strip().splitlines() == [
        f"{signal.Signals(number).name}: the run saves and ends after what it is at; once more ends it at once"
    ]


@SENT
def test_the_second_signal_ends_at_once(number, code):
    with started("stays", "quiet") as run:
        run.send_signal(number)
        assert line(run) == "requested"
        run.send_signal(number)
        out, err = run.communicate(timeout=300)
    assert (out, err) == ("at once\n", "")
    assert run.returncode == code


def test_the_last_signal_gives_the_exit_code():
    with started("stays", "quiet") as run:
        run.send_signal(signal.SIGINT)
        assert line(run) == "requested"
        run.send_signal(signal.SIGTERM)
        run.communicate(timeout=300)
    assert run.returncode == 143


def test_signals_that_are_ignored_stay_ignored():
    subprocess.run([sys.executable, "-c", IGNORES], check=True, timeout=300)


def test_outside_the_main_thread_nothing_is_touched():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    seen = []

    def body():
        with Interrupt() as interrupt:
            seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])
            seen.append((interrupt.requested, interrupt.exit_code))

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert seen == [before, (False, 0)]

"""The benchmarks run, at a size that says nothing about speed, and their JSON lines carry what they promise."""

import json
import math
import os
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, xla_flags

PROMISED = {
    "text_step --layers 1 --classes 21 --contexts 4 --methods promptfl --clients 2 --steps 1 --repeats 1": {
        "text_speedup_c21",
        "step_speedup_c21",
        "ceiling_share",
    },
    "encode --layers 1 --batch 2 --repeats 1": {"speedup"},
    "engine --rounds 2": {"seconds_per_round_1k", "seconds_per_round_100k", "torch_ratio_1k"},
    "population --rounds 4 --turns 2 --cohort 8": {"round_time_ratio_1e6_to_1e3", "round_time_ratio_1e9_to_1e3"},
    "round --quick --repeats 1": {"wasted_lane_share", "compile_seconds", "reduced_bytes"},
    "attention": {"text_speedup", "images_speedup"},
    "sweep --cold --rounds 1 --alone 1 --weights 0 1 --seeds 1 --scenes 320": {"wall_ratio"},
}
OF_TORCH = {"text_speedup_c21", "step_speedup_c21", "speedup", "torch_ratio_1k"}


@pytest.mark.long
@pytest.mark.parametrize("command", PROMISED, ids=lambda command: command.split()[0])
def test_benchmarks_run_and_tell_what_they_promise(command):
    check(command, PROMISED[command])


@pytest.mark.nightly
@pytest.mark.parametrize("command", PROMISED, ids=lambda command: command.split()[0])
def test_benchmarks_at_full_size(command):
    check(command.split()[0], PROMISED[command])


def check(command: str, promised: set[str]) -> None:
    environment = {**os.environ, "XLA_FLAGS": xla_flags(1)}
    words = [sys.executable, "-m", *f"tests.benchmarks.{command}".split()]
    done = subprocess.run(words, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("| ---") for line in lines)
    told = json.loads(lines[-1])
    try:
        import torch  # noqa: F401
    except ImportError:
        promised = promised - OF_TORCH
    assert told["benchmark"] == command.split()[0]
    for name in promised:
        assert math.isfinite(told[name]), name
        assert told[name] >= 0, name

"""What tests of the command line share: runs that are short, and refusals that are one line and leave nothing."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli

# Sixty-four scenes are four a class: three to train and one to test. Two clients, so that a run is short.
SMALL = (
    "--no-report",
    "--config.data.scenes.count=64",
    "--config.data.image_size=16",
    "--config.partition.clients=2",
    "--config.partition.min_examples=1",
    "--config.seeds=1",
    "--config.rounds=1",
    "--config.baselines=",
)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A fresh working folder; the cache of compiled programs stays where the tests have it."""
    from fedrsclip_jax import compilation

    monkeypatch.setattr(compilation, "keep_on_disk", lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capfd):
    """Runs the command line in this process and gives the one line on stderr, where all is as it should be."""

    def run(verb: str, *arguments: str) -> str:
        before = listing(here)
        capfd.readouterr()
        code = cli.main([verb, *arguments])
        out, err = capfd.readouterr()
        check(code, out, err)
        assert listing(here) == before
        return err

    return run


@pytest.fixture
def federation(tiny_folder):
    """Arguments of a federation that would work."""
    return (*SMALL, f"--config.backbone={tiny_folder}", "--workdir=out", "--quiet")


def check(code: int, out: str, err: str) -> None:
    assert code == 2, err
    assert out == ""
    assert err.startswith("fedrsclip: "), err
    assert err.endswith("\n")
    assert err.count("\n") == 1, err


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path.relative_to(folder)), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def started(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """The command line in a process of its own: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "fedrsclip_jax.cli", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(Path(cli.__file__).parents[1])} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout, done.stderr


def photographs(folder: Path, counts: dict[str, int]) -> Path:
    """A folder of class folders with small PNGs of noise, so that a file cut in half lacks pixels."""
    rng = np.random.default_rng(0)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)).save(folder / name / f"{i}.png")
    return folder

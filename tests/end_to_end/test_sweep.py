"""A sweep from the command line: its runs are the runs alone, it goes on where it stopped, and says what it found."""

import csv
import dataclasses
import importlib.util
import json

import numpy as np
import pytest
from PIL import Image

from fedrsclip_jax import cli, experiment
from fedrsclip_jax import sweep as sweeps
from fedrsclip_jax.config import Config, resolve
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.finished import open_run
from fedrsclip_jax.interrupt import Interrupt
from tests.end_to_end.test_resume import SMALL

WEIGHTS = "--config.sweep.grid.method.pacl_weight=0,1.5"
SEEDS = "--config.sweep.seeds=2"


@pytest.fixture
def command(tiny_folder, tmp_path, capfd):
    def run(verb: str, name: str, *flags: str) -> tuple[int, str]:
        capfd.readouterr()
        left_out = {"spmd.devices", "local.batch_size"} | {flag.split("=")[0].split(".", 3)[-1] for flag in flags}
        own = [flag for flag in SMALL if flag.split("=")[0].removeprefix("--config.") not in left_out]
        words = [verb, "--quiet", *own, f"--config.backbone={tiny_folder}", f"--workdir={tmp_path / name}", *flags]
        code = cli.main(words)
        return code, capfd.readouterr().err

    return run


def summary(folder) -> dict:
    return json.loads((folder / "summary.json").read_text())


def results(folder) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def check_same_run(folder, alone) -> None:
    ours, theirs = summary(folder), summary(alone)
    for part in ("personalised", "global", "zero_shot"):
        for name in ("mean", "accuracy"):
            if name in ours[part]:
                assert ours[part][name] == pytest.approx(theirs[part][name], abs=1e-5)
    lines = [(path / "metrics.jsonl").read_text().splitlines() for path in (folder, alone)]
    for one, other in zip(*lines, strict=True):
        assert json.loads(one)["loss"] == pytest.approx(json.loads(other)["loss"], rel=1e-4)
    same = ("bytes_sent", "partition_sha256", "data_sha256", "backbone_sha256", "rounds", "seed", "silent_rounds")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}


@pytest.mark.long
def test_a_sweep_is_its_runs_and_tells_what_they_show(command, tmp_path):
    events = importlib.util.find_spec("tensorboardX") is not None
    assert command("sweep", "sweep", "--report", WEIGHTS, SEEDS, *["--tensorboard"] * events) == (0, "")
    folder = tmp_path / "sweep"
    if events:
        written = {path.parent.name for path in folder.glob("tensorboard/*/events*")}
        assert written == {path.name for path in (folder / "runs").iterdir()}
    with pytest.raises(
        InputError, match=r"holds a sweep of many runs; give one of its runs, such as .*pacl_weight=0-seed0"
    ):
        open_run(folder, ())  # as evaluate, predict and export do
    told = json.loads((folder / "sweep.json").read_text())
    assert told["programs"] == 1
    assert [row["label"] for row in told["rows"]] == ["pacl_weight=0", "pacl_weight=1.5"]
    alone = ("--config.method.pacl_weight=1.5", "--config.seed=1", "--config.spmd.devices=1")
    assert command("train", "alone", *alone)[0] == 0
    check_same_run(folder / told["rows"][1]["runs"][1]["folder"], tmp_path / "alone")

    rows = results(folder)
    assert [(row["method.pacl_weight"], row["seed"]) for row in rows] == [
        ("0.0", "0"),
        ("0.0", "1"),
        ("1.5", "0"),
        ("1.5", "1"),
    ]
    own = [float(row["own"]) for row in rows]
    table = (folder / "table.md").read_text().splitlines()
    assert table[4].startswith("| zero-shot |")
    assert f"{100 * np.mean(own[2:]):.1f} ± {100 * np.std(own[2:], ddof=1):.1f}" in table[6]
    assert f"{100 * np.mean(np.subtract(own[2:], own[:2])):+.1f}" in table[6]
    assert "**" not in "".join(table), "nothing is chosen on test images"
    picture = np.asarray(Image.open(folder / "pictures" / "by_method.pacl_weight.png").convert("L"))
    assert picture.std() > 5

    page = (folder / "report.html").read_text(encoding="utf-8")
    assert page.count("<svg") == 2, "rows side by side, and along the key"
    assert f"Highest is pacl_weight={'1.5' if np.mean(own[2:]) > np.mean(own[:2]) else '0'} with" in page
    assert page.count("/report.html") == 4, "each run has a page of its own"

    before = {path: path.stat().st_mtime_ns for path in folder.rglob("summary.json")}
    assert command("sweep", "sweep", WEIGHTS, "--config.sweep.seeds=3")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before, "what is there is not done again"
    assert len(results(folder)) == 6
    assert not [*folder.rglob("report.html")], "with --no-report older pages are gone"
    assert cli.main(["report", f"--workdir={folder}"]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "6 runs" in page
    assert page.count("/report.html") == 0, "runs without a page are not linked to one"
    assert command("sweep", "sweep", WEIGHTS, "--config.sweep.seeds=3", "--report")[0] == 0
    assert (folder / "report.html").read_text(encoding="utf-8").count("/report.html") == 6, "they are drawn now"


@pytest.mark.long
def test_groups_directions_and_a_run_that_diverges(command, tmp_path):
    """Two methods are two programs; a rate that is too large is told and stops nobody else; validation chooses."""
    flags = (
        "--config.sweep.zip.method.name=promptfl,fedrsclip,fedrsclip",
        "--config.sweep.zip.local.learning_rate=0.1,0.1,1e38",
        "--config.eval.split=validation",
        "--config.rounds=2",
    )
    assert command("sweep", "sweep", *flags)[0] == 0
    told = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    assert told["programs"] == 2
    assert [bool(row["runs"][0]["diverged"]) for row in told["rows"]] == [False, False, True]
    table = (tmp_path / "sweep" / "table.md").read_text()
    assert "(1 of 1 diverged)" in table
    assert table.count("\n| **") == 1
    lost = tmp_path / "sweep" / told["rows"][2]["runs"][0]["folder"]
    assert command("sweep", "sweep", *flags)[0] == 0, "and the next start does not try it again"
    assert sweeps._mark(lost).is_file()

    # That it diverged is of its settings alone.
    was = json.loads(sweeps._mark(lost).read_text())
    config = resolve(Config, was["config"])
    assert sweeps._gave_up(sweeps.Member(lost, config, was["identity"]))
    slower = dataclasses.replace(config, local=dataclasses.replace(config.local, learning_rate=0.1))
    assert not sweeps._gave_up(sweeps.Member(lost, slower, was["identity"]))
    assert not sweeps._mark(lost).exists()

    before = {path: path.read_bytes() for path in (tmp_path / "sweep").glob("*.*")}
    for other, words in (
        ((*flags, "--config.local.momentum=0.5"), "local.momentum = 0.5"),
        ((*flags[:1], "--config.sweep.zip.local.learning_rate=0.1,0.1,0.2", *flags[2:]), "holds another sweep"),
        ((*flags[:3], "--config.rounds=1"), "is at round 2"),
    ):
        code, err = command("sweep", "sweep", *other)
        assert (code, err.count("\n")) == (2, 1)
        assert words in err
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.long
def test_a_sweep_goes_on_where_it_was_stopped(command, tmp_path, monkeypatch):
    flags = (WEIGHTS, SEEDS, "--config.checkpoint.every=1", "--config.eval.every=1", "--config.rounds=4")
    with monkeypatch.context() as patch:
        entered = experiment.Run.enter

        def enter_and_stop(run, dispatch):
            entered(run, dispatch)
            patch.setattr(Interrupt, "exit_code", property(lambda self: 143))

        patch.setattr(experiment.Run, "enter", enter_and_stop)
        code, err = command("sweep", "parts", *flags)
    assert code == 143
    assert "4 runs of fedrsclip: saved after round" in err
    assert "to go on: fedrsclip sweep" in err
    runs = sorted((tmp_path / "parts" / "runs").iterdir())
    assert len(runs) == 4
    assert not any((run / "summary.json").exists() for run in runs)
    assert command("sweep", "parts", *flags)[0] == 0
    assert command("sweep", "whole", *flags)[0] == 0
    for run in runs:
        whole = tmp_path / "whole" / "runs" / run.name
        assert summary(run)["state_sha256"] == summary(whole)["state_sha256"]
        assert (run / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_more_runs_than_fit_side_by_side_are_several_programs(monkeypatch, tmp_path):
    from fedrsclip_jax.grid import read

    monkeypatch.setattr(sweeps, "MOST_RUNS_OF_CPU", 1)
    rows = read({"sweep": {"grid": {"method.pacl_weight": [0.1 * n for n in range(10)]}}}).rows
    groups = sweeps._groups([sweeps.Member(tmp_path, row.runs[0], {}) for row in rows])
    assert [len(group) for group in groups] == [8, 2], "eight devices, one run on each"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), "varies nothing"),
        (("--config.sweep.grid.method.pacl_weight=a",), "pacl_weight"),
        (("--config.sweep.grid.dtype=float32,bfloat16",), "share images"),
        (("--config.sweep.grid.partition.clients=4,5000",), "5000"),
        (("--config.sweep.grid.cohort=2,400",), "cohort = 400"),
        ((WEIGHTS, "--config.server.aggregator=krum", "--config.server.faulty=9"), "server.faulty"),
        ((WEIGHTS, "--config.spmd.devices=99"), "spmd.devices = 99"),
        (("--config.sweep.grid.method.name=promptfl,nope",), "nope"),
        ((WEIGHTS, "--config.spmd.features=streamed"), "share images"),
    ],
)
def test_bad_sweeps_are_refused_before_anything_is_written(command, tmp_path, flags, words):
    code, err = command("sweep", "sweep", *flags)
    assert code == 2
    assert err.count("\n") == 1
    assert words in err
    assert not (tmp_path / "sweep").exists()


def test_the_folder_of_a_single_run_is_refused(command, tmp_path):
    assert command("train", "run", "--config.rounds=1")[0] == 0
    before = (tmp_path / "run" / "config.json").read_bytes()
    code, err = command("sweep", "run", WEIGHTS)
    assert code == 2
    assert "holds a single run" in err
    assert (tmp_path / "run" / "config.json").read_bytes() == before

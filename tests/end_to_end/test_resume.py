"""A run that is stopped, changed, damaged or fought over, and started again."""

import errno
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from safetensors.numpy import save_file

from fedrsclip_jax import cli, experiment
from fedrsclip_jax.checkpoint import Checkpoints, Saved
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.interrupt import Interrupt
from tests.conftest import REPOSITORY, xla_flags
from tests.end_to_end.conftest import photographs

pytestmark = pytest.mark.optimised

SMALL = (
    "--no-report",
    f"--config={REPOSITORY / 'configs' / 'quickstart.py'}",
    "--config.seeds=1",
    "--config.baselines=",
    "--config.data.scenes.count=320",
    "--config.data.image_size=32",
    "--config.partition.clients=4",
    "--config.partition.alpha=0.5",
    "--config.local.batch_size=16",
    "--config.rounds=6",
    "--config.eval.every=2",
    "--config.checkpoint.every=2",
    "--config.spmd.devices=2",
)
OF_THE_CLOCK = {"seconds", "client_steps_per_second", "provenance"}


@pytest.fixture
def train(tiny_folder, tmp_path, capfd):
    """Runs the command line in this process; gives the exit code and what it said on standard error."""

    def run(name: str, *flags: str) -> tuple[int, str]:
        capfd.readouterr()
        words = ("train", "--quiet", *SMALL, f"--config.backbone={tiny_folder}", f"--workdir={tmp_path / name}")
        code = cli.main([*words, *flags])
        return code, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def finished(tiny_folder, tmp_path_factory):
    """The folder of a finished run with some flags, trained once; for reading alone."""

    @cache
    def run(*flags: str) -> Path:
        folder = tmp_path_factory.mktemp("finished") / "run"
        words = ("train", "--quiet", *SMALL, f"--config.backbone={tiny_folder}", f"--workdir={folder}")
        assert cli.main([*words, *flags]) == 0
        return folder

    return run


@pytest.fixture
def given(finished, tmp_path):
    """A finished run to go on with or to damage: a copy in `tmp_path`."""

    def copied(name: str, *flags: str) -> None:
        shutil.copytree(finished(*flags), tmp_path / name)

    return copied


def left(workdir: Path) -> dict:
    """What a run leaves that has to be the same, whenever it was stopped."""
    summary = json.loads((workdir / "summary.json").read_text())
    kept = {name: value for name, value in summary.items() if name not in OF_THE_CLOCK}
    return {"lines": (workdir / "metrics.jsonl").read_text(), **kept}


def prompts(workdir: Path) -> list[np.ndarray]:
    """Shared and private prompts of the last checkpoint."""
    with Checkpoints(workdir) as checkpoints:
        saved = checkpoints.restore()
    return [*saved.shared, *saved.population["leaves"].values()]


def check_refused(answer: tuple[int, str], *words: str) -> None:
    code, err = answer
    assert code == 2, err
    assert err.startswith("fedrsclip: ")
    assert err.count("\n") == 1, err
    for word in words:
        assert word in err, err


# Going on


@pytest.mark.parametrize(
    "flags",
    [
        (),
        (
            "--config.cohort=3",
            "--config.dropout=0.3",
            "--config.local.optimizer=adam",
            "--config.server.optimizer=momentum",
        ),
        ("--config.method.name=local_coop",),
    ],
    ids=["fedrsclip", "cohorts and optimisers with state", "nothing shared"],
)
def test_more_rounds_go_on_as_if_they_had_been_asked_for_at_once(train, given, tmp_path, flags):
    given("whole", *flags)
    given("parts", *flags, "--config.rounds=2")
    before = (tmp_path / "parts" / "summary.json").read_text()
    assert train("parts", *flags, "--config.rounds=4", "--config.eval.every=1", "--config.checkpoint.keep=1")[0] == 0
    assert before != (tmp_path / "parts" / "summary.json").read_text()
    assert train("parts", *flags)[0] == 0
    whole, parts = left(tmp_path / "whole"), left(tmp_path / "parts")
    assert parts["state_sha256"] == whole["state_sha256"]
    lines = {number: json.loads(line)["loss"] for number, line in enumerate(parts["lines"].splitlines())}
    assert len(lines) == 4, "rounds 2, 3, 4 and 6"
    assert parts["lines"].splitlines()[-1] == whole["lines"].splitlines()[-1]
    assert {key: parts[key] for key in ("bytes_sent", "personalised", "global", "silent_rounds")} == {
        key: whole[key] for key in ("bytes_sent", "personalised", "global", "silent_rounds")
    }


def test_a_finished_run_is_left_as_it_is(train, given, tmp_path):
    given("run")
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*") if "checkpoints" in path.parts}
    before = left(tmp_path / "run")
    assert train("run")[0] == 0
    assert left(tmp_path / "run") == before
    assert {path: path.stat().st_mtime_ns for path in written} == written


@pytest.mark.parametrize(("devices", "ordered"), [("4", "true"), ("1", "true"), ("1", "false")])
def test_on_another_number_of_devices(train, given, tmp_path, devices, ordered):
    flags = (f"--config.spmd.ordered_reduce={ordered}",)
    given("whole", *flags)
    given("parts", *flags, "--config.rounds=2")
    assert train("parts", *flags, f"--config.spmd.devices={devices}")[0] == 0
    whole, parts = left(tmp_path / "whole"), left(tmp_path / "parts")
    assert parts["devices"] == int(devices)
    if ordered == "true":
        assert parts["state_sha256"] == whole["state_sha256"]
    for ours, theirs in zip(prompts(tmp_path / "parts"), prompts(tmp_path / "whole"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    assert parts["personalised"]["mean"] == pytest.approx(whole["personalised"]["mean"], abs=1e-6)
    for ours, theirs in zip(parts["lines"].splitlines(), whole["lines"].splitlines(), strict=True):
        assert json.loads(ours)["loss"] == pytest.approx(json.loads(theirs)["loss"], abs=1e-6)


def test_a_comparison_goes_on_with_what_is_left_to_do(train, given, tmp_path):
    rows = ("--config.seeds=2", "--config.baselines=promptfl")
    assert train("whole", *rows)[0] == 0
    given("parts")
    first = left(tmp_path / "parts")
    assert train("parts", *rows)[0] == 0
    assert left(tmp_path / "parts") == first
    results = [json.loads((tmp_path / name / "comparison.json").read_text()) for name in ("whole", "parts")]
    assert results[0] == results[1]


def test_another_run_as_the_start(train, tmp_path):
    assert train("first", "--config.method.name=promptfl", "--config.rounds=2")[0] == 0
    still = ("--config.rounds=1", "--config.local.learning_rate=0")
    assert train("second", f"--config.init_from=run:{tmp_path / 'first'}", *still)[0] == 0
    shared = []
    for name in ("first", "second"):
        words = ("export", "--quiet", f"--workdir={tmp_path / name}", "--format=safetensors")
        assert cli.main([*words, f"--output={tmp_path / name}-out"]) == 0
        certificate = json.loads((tmp_path / f"{name}-out" / "certificate.json").read_text())
        shared.append(certificate["prompts_sha256"])
    assert shared[0] == shared[1]
    check_refused(train("third", f"--config.init_from=run:{tmp_path}"), "init_from", "holds no checkpoints")


def test_prompts_that_changed_since_the_start(train, tmp_path, capfd):
    """A finished run needs them no more; who goes on with a run is told."""
    file, kept = tmp_path / "start", tmp_path / "run" / "initial_prompts.safetensors"

    def write(seed: int) -> None:
        rng = np.random.default_rng(seed)
        save_file({name: rng.normal(0, 0.3, (4, 32)).astype(np.float32) for name in ("shared", "private")}, file)

    def scores() -> str:
        capfd.readouterr()
        assert cli.main(["evaluate", "--quiet", f"--workdir={tmp_path / 'run'}"]) == 0
        return capfd.readouterr().out

    write(0)
    flags = (f"--config.init_from=safetensors:{file}", "--config.cohort=1", "--config.checkpoint.every=1")
    two, three = "--config.rounds=2", "--config.rounds=3"
    assert train("whole", *flags, three)[0] == 0
    assert train("run", *flags, two)[0] == 0
    before = scores()
    write(1)
    assert scores() == before
    for rounds in (two, three):
        answer = train("run", *flags, rounds)
        check_refused(answer, "initial_prompts (another digest)", "--allow-changed=initial_prompts")
    file.unlink()
    assert scores() == before
    check_refused(train("run", *flags, three), "init_from", "is no file")
    assert train("run", *flags, three, f"--config.init_from=safetensors:{kept}", "--allow-changed=init_from")[0] == 0
    assert left(tmp_path / "run")["state_sha256"] == left(tmp_path / "whole")["state_sha256"]

    write(1)
    changed = "--allow-changed=init_from,initial_prompts"
    assert train("run", *flags, "--config.rounds=4", changed)[0] == 0
    assert kept.read_bytes() == file.read_bytes()
    assert train("run", *flags, "--config.rounds=5", "--config.init_from=", changed)[0] == 0
    assert not kept.exists()


def test_the_best_by_validation_is_kept_apart(train, given, tmp_path, capfd):
    assert train("run", "--config.eval.split=validation", "--config.eval.every=1")[0] == 0
    summary = left(tmp_path / "run")
    means = [json.loads(line)["personalised"]["mean"] for line in summary["lines"].splitlines()]
    best = means.index(max(means)) + 1
    assert summary["best_round"] == best
    assert [path.name for path in (tmp_path / "run" / "best").iterdir()] == [str(best)]
    words = ("export", "--quiet", f"--workdir={tmp_path / 'run'}", "--format=safetensors", "--checkpoint=best")
    assert cli.main([*words, f"--output={tmp_path / 'out'}"]) == 0
    assert json.loads((tmp_path / "out" / "certificate.json").read_text())["run"]["round"] == best
    given("test")
    assert left(tmp_path / "test")["best_round"] is None
    assert cli.main([*words, f"--workdir={tmp_path / 'test'}", f"--output={tmp_path / 'none'}"]) == 2
    assert "eval.split = validation" in capfd.readouterr().err


def test_the_best_outlives_a_kill_after_a_better_one(train, tmp_path, monkeypatch):
    """A better one that no checkpoint knows of is taken back, and the one before it is still there."""
    means = iter([0.1, 0.5, 0.2, 0.6, 0.3, 0.4])
    real = experiment.brief

    def brief(scores):
        line = real(scores)
        line["personalised"]["mean"] = next(means)
        return line

    monkeypatch.setattr(experiment, "brief", brief)
    flags = ("--config.eval.split=validation", "--config.eval.every=1", "--config.checkpoint.every=3")
    advance = Federation.advance

    def dies(self, first, most):
        if first == 5:
            raise RuntimeError("killed")
        return advance(self, first, most)

    with monkeypatch.context() as patch:
        patch.setattr(Federation, "advance", dies)
        with pytest.raises(RuntimeError, match="killed"):
            train("run", *flags)
    folder = tmp_path / "run" / "best"
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"]
    check_refused(train("run", *flags, "--config.rounds=2"), "at round 3")
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4"], "who is refused takes nothing away"
    means = iter([0.45, 0.3, 0.4])
    assert train("run", *flags)[0] == 0
    assert left(tmp_path / "run")["best_round"] == 2
    assert [path.name for path in folder.iterdir()] == ["2"]


def test_a_run_that_is_to_end_where_it_stands_has_all_its_lines(train, tmp_path, monkeypatch):
    flags = ("--config.eval.every=4", "--config.checkpoint.every=1")
    entered = experiment.Run.enter

    def enter_and_stop(run, dispatch):
        entered(run, dispatch)
        monkeypatch.setattr(Interrupt, "exit_code", property(lambda self: 143))

    monkeypatch.setattr(experiment.Run, "enter", enter_and_stop)
    assert train("run", *flags)[0] == 143
    monkeypatch.undo()
    assert not (tmp_path / "run" / "metrics.jsonl").read_text()
    assert train("run", *flags, "--config.rounds=1")[0] == 0
    assert train("whole", *flags, "--config.rounds=1")[0] == 0
    assert left(tmp_path / "run") == left(tmp_path / "whole")


# Refusals


def test_a_finished_run_is_not_taken_for_one_of_other_settings(train, tmp_path):
    photographs(tmp_path / "photos", {"river": 24, "lake": 24})
    flags = ("--config.rounds=2", f"--config.data.source=folder:{tmp_path / 'photos'}")
    assert train("run", *flags)[0] == 0
    summary = (tmp_path / "run" / "summary.json").read_text()
    changed = ("--config.local.learning_rate=0.01", "--allow-changed=local.learning_rate")
    check_refused(train("run", *flags, *changed), "is finished", "set rounds to more than 2")
    # A key that is younger than the run is not held against it: it had its default.
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    del config["method"]["temperature"]
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    assert train("run", *flags)[0] == 0
    check_refused(train("run", *flags, "--config.method.temperature=0.7"), "method.temperature = 0.7 (it was ")
    file = next((tmp_path / "photos" / "lake").iterdir())
    shutil.copy(next((tmp_path / "photos" / "river").iterdir()), file)
    check_refused(train("run", *flags), "data (another digest)")
    assert (tmp_path / "run" / "summary.json").read_text() == summary


@pytest.mark.parametrize(
    "changed",
    ["server.optimizer=adam", "method.name=promptfl", "method.context_tokens=3"],
    ids=lambda changed: changed.partition("=")[0],
)
def test_what_changes_the_arrays_of_a_run_cannot_be_allowed(train, given, tmp_path, changed):
    given("run", "--config.rounds=2")
    key = changed.partition("=")[0]
    same = "--config.server.learning_rate=1.0"  # which else would follow the optimiser
    words = (f"--config.{changed}", same, f"--allow-changed={key}")
    check_refused(train("run", *words), "cannot be changed within a run")
    assert train("run")[0] == 0, "and nothing is lost"


def test_what_a_start_left_that_was_killed_at_once_is_no_obstacle(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".partial.config.json.x").write_text("{")
    assert train("run", "--config.rounds=1")[0] == 0


@pytest.mark.parametrize("content", ["{}", "[]", "{"])
def test_a_folder_whose_files_make_no_sense_is_refused(train, given, tmp_path, content):
    given("run", "--config.rounds=1")
    for name in ("summary.json", "identity.json", "config.json"):
        kept = (tmp_path / "run" / name).read_text()
        (tmp_path / "run" / name).write_text(content)
        if (name, content) != ("config.json", "{}"):  # an empty configuration differs, and is allowed to in nothing
            check_refused(train("run", "--config.rounds=1"), name)
        (tmp_path / "run" / name).write_text(kept)


def test_a_disk_that_refuses_to_write_is_told_in_a_line(train, given, tmp_path, monkeypatch):
    """As on a full disk, for those who may not mount one."""
    given("run", "--config.rounds=2")
    given("whole")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", full)
        check_refused(train("run"), "checkpoints", "make room")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        check_refused(train("run"), "make room")
    assert train("run")[0] == 0
    assert left(tmp_path / "run") == left(tmp_path / "whole")


def test_another_configuration_is_refused_unless_it_is_meant(train, given, tmp_path):
    given("run", "--config.rounds=2")
    changed = ("--config.local.learning_rate=0.01", "--config.seed=0", "--config.method.pacl_weight=0.2")
    check_refused(
        train("run", *changed),
        "local.learning_rate = 0.01 (it was 0.1)",
        "method.pacl_weight = 0.2",
        "--allow-changed=local.learning_rate,method.pacl_weight",
    )
    check_refused(train("run", *changed, "--allow-changed=local.learning_rate"), "--allow-changed=method.pacl_weight")
    check_refused(train("run", *changed, "--allow-changed=lerning_rate"), "no key 'lerning_rate'")
    check_refused(train("run", "--config.rounds=1"), "rounds = 1", "at round 2")
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1, "nothing has touched it"
    assert train("run", *changed, "--allow-changed=local.learning_rate,method.pacl_weight")[0] == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["local"]["learning_rate"] == 0.01


def test_other_images_and_another_backbone_are_refused(train, given, tiny_folder, tmp_path):
    given("run", "--config.rounds=2")
    shutil.copytree(tiny_folder, tmp_path / "moved")
    moved = f"--config.backbone={tmp_path / 'moved'}"
    assert train("run", "--config.rounds=3", moved)[0] == 0, "the same weights in another place are the same"
    weights = tmp_path / "moved" / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    check_refused(train("run", moved), "backbone (another digest)", "--allow-changed=backbone")
    check_refused(train("run", "--config.data.scenes.seed=8"), "data.scenes.seed = 8 (it was 7)")
    both = "--allow-changed=data.scenes.seed"
    check_refused(train("run", "--config.data.scenes.seed=8", both), "data (another digest)")


def test_a_folder_in_use_is_refused(train, tmp_path):
    (tmp_path / "run").mkdir()
    holds = "import sys, pathlib, fedrsclip_jax.lock as l\nwith l.hold(pathlib.Path(sys.argv[1])): print(); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holds, str(tmp_path / "run")],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout
        other.stdout.readline()
        check_refused(train("run"), f"in use by process {other.pid}")
        other.kill()
    assert train("run")[0] == 0, "the lock of a dead process is taken over"


# Damage


# Reading what is damaged, and writing to a full disk, Orbax leaves tasks of a closed event loop behind.
noisy = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x10
    file.write_bytes(content)


@noisy
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink], ids=["truncated", "one bit", "missing"])
def test_a_damaged_checkpoint_is_passed_over_for_a_sound_one(train, given, tmp_path, caplog, damage):
    given("whole")
    given("run", "--config.rounds=4")
    newest = tmp_path / "run" / "checkpoints" / "4"
    file = max((path for path in newest.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damage(file)
    with caplog.at_level(logging.WARNING):
        assert train("run")[0] == 0
    assert "checkpoint 4" in caplog.text
    assert left(tmp_path / "run") == left(tmp_path / "whole")


@noisy
def test_no_file_of_a_checkpoint_can_be_lost_unnoticed(given, tmp_path):
    """Each file in turn: what is gone on from is the checkpoint before, or what the file held was not needed."""
    given("run", "--config.rounds=4")

    def found(which: str) -> Saved:
        with Checkpoints(tmp_path / "run") as checkpoints:
            return checkpoints.restore(which)

    sound = {number: found(str(number)) for number in (2, 4)}
    files = [path for path in (tmp_path / "run" / "checkpoints" / "4").rglob("*") if path.is_file()]
    assert len(files) >= 4
    rounds = set()
    for file in files:
        content = file.read_bytes()
        file.unlink()
        saved = found("last")
        file.write_bytes(content)
        rounds.add(saved.round)
        expected, got = (jax.tree.flatten(tuple(one)) for one in (sound[saved.round], saved))
        assert got[1] == expected[1], file
        for ours, theirs in zip(got[0], expected[0], strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=str(file))
    assert 2 in rounds, "or no file held anything"


@noisy
def test_without_a_sound_checkpoint_nothing_is_overwritten(train, given, tmp_path):
    given("run", "--config.rounds=2")
    for file in (tmp_path / "run" / "checkpoints").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    check_refused(train("run"), "no checkpoint can be read, of 2", "copy the folder")
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_diverges_keeps_its_last_sound_state(train, tmp_path):
    """A server that overshoots: after one round the prompts are huge, and no client's update is finite any more."""
    flags = ("--config.server.learning_rate=1e30", "--config.checkpoint.every=0")
    said = (
        "fedrsclip: fedrsclip, seed 0: round 2: prompts or loss are no longer finite; lower local.learning_rate = 0.1\n"
    )
    assert train("run", *flags) == (1, said)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["1"]
    assert train("run", *flags) == (1, said)


@noisy
def test_a_full_disk_stops_the_run_and_leaves_the_last_checkpoint(tiny_folder, tmp_path, train, given):
    """On a real file system that is too small for what the run writes."""
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2000k", "tmpfs", str(small)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        assert train("small/run", "--config.rounds=2")[0] == 0
        (small / "filler").write_bytes(bytes(max(0, shutil.disk_usage(small).free - 8192)))
        check_refused(train("small/run"), "make room")
        (small / "filler").unlink()
        assert train("small/run")[0] == 0
        given("whole")
        assert left(small / "run") == left(tmp_path / "whole")
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


# Signals


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_the_run_and_says_how_to_go_on(tiny_folder, tmp_path, feature_cache, number, code):
    environment = {**os.environ, "XLA_FLAGS": xla_flags(2)}
    folder = tmp_path / "run"
    rounds = "--config.rounds=100000"
    words = ["train", "--quiet", *SMALL, f"--config.backbone={tiny_folder}", rounds, f"--workdir={folder}"]
    # Tests may run in the background, where SIGINT is ignored.
    heeds = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    program = [sys.executable, "-c", f"{heeds}; from fedrsclip_jax import cli; sys.exit(cli.main())"]
    with subprocess.Popen(
        [*program, *words],
        env=environment,
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
    ) as run:
        end = time.monotonic() + 200
        while not ((folder / "metrics.jsonl").exists() and (folder / "metrics.jsonl").stat().st_size):
            assert run.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        run.send_signal(number)
        _, err = run.communicate(timeout=300)
    assert run.returncode == code, err
    line = err.splitlines()[-1]
    saved = int(line.partition("saved after round ")[2].split()[0])
    assert saved > 0
    said = line.partition("to go on: fedrsclip ")[2].split()
    assert said == words

    # The line does what it says, here with an end in sight; and the end is that of a run that was left alone.
    flags = [word for word in said if not word.startswith(("--config.rounds", "--workdir"))]
    flags += [f"--config.rounds={saved + 3}"]
    assert cli.main([*flags, f"--workdir={folder}"]) == 0
    assert cli.main([*flags, f"--workdir={tmp_path / 'whole'}"]) == 0
    assert left(folder) == left(tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.nightly)])
def test_a_run_that_is_killed_at_any_moment_ends_in_the_same_bits(times):
    from tests.faults.kill import PHASES, kill

    survived, went_on = kill(times, seed=int(time.time()))
    assert survived == dict.fromkeys(PHASES, times // len(PHASES))
    assert went_on > 0

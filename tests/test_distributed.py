"""Several devices, several processes, and what starts them."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import yaml

from fedrsclip_jax import cli, distributed
from tests import processes
from tests.conftest import REPOSITORY

LAUNCH = REPOSITORY / "launch"
SMALL = (
    "--quiet",
    f"--config={REPOSITORY / 'configs/quickstart.py'}",
    "--config.seeds=1",
    "--config.baselines=",
    "--config.data.scenes.count=320",
    "--config.data.image_size=32",
    "--config.partition.clients=4",
    "--config.partition.alpha=0.5",
    "--config.local.batch_size=16",
    "--config.eval.every=2",
    "--config.spmd.ordered_reduce=true",
)


def environment(devices: int = 2, **more: str) -> dict[str, str]:
    """Of a process that is started here: without the eight devices of the tests."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    return {**os.environ, "XLA_FLAGS": flags, "PYTHON": sys.executable, **more}


def in_two_processes(*words: str) -> list[str]:
    """Runs `python WORDS` as two processes; what each printed, all of it sound."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = {distributed.PROCESSES: "2", distributed.COORDINATOR: address}
    started = [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env=environment(**own, **{distributed.PROCESS: str(process)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    try:
        printed = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], printed
    return [out for out, _ in printed]


# Equal results


@functools.cache
def alone(folder: Path, case: str, devices: int, ordered: bool, **more: str):
    return processes.outcome(folder, case, devices=devices, ordered=ordered, **more)


def assert_equal_bits(run, one, where: str) -> None:
    for name in one:
        if name.startswith(("shared", "private")):
            np.testing.assert_array_equal(run[name], one[name], err_msg=f"{name} on {where}")


@pytest.fixture(scope="module")
def apart(tiny_folder, tmp_path_factory):
    """What two processes of two devices each find, by `CASE/ORDERED/NAME`."""
    path = tmp_path_factory.mktemp("apart") / "result.npz"
    in_two_processes("-m", "tests.processes", str(tiny_folder), str(path))
    with np.load(path) as file:
        return dict(file)


def runs(folder: Path, apart, case: str, ordered: bool):
    """The same run on one device, on several, and in two processes."""
    one = alone(folder, case, 1, ordered)
    others = {str(devices): alone(folder, case, devices, ordered) for devices in (2, 4, 8)}
    others["2 x 2"] = {name: apart[f"{case}/{ordered}/{name}"] for name in one}
    assert [int(run["devices"]) for run in others.values()] == [2, 4, 8, 4]
    return one, others


@pytest.mark.long
@pytest.mark.parametrize("case", processes.CASES)
def test_devices_and_processes_change_nothing_but_the_last_digits(tiny_folder, apart, case):
    one, others = runs(tiny_folder, apart, case, False)
    for where, run in others.items():
        for name in one:
            if name.startswith(("shared", "private")):
                np.testing.assert_allclose(run[name], one[name], rtol=0, atol=1e-5, err_msg=f"{name} on {where}")
        np.testing.assert_allclose(run["scores"], one["scores"], rtol=0, atol=1e-6, err_msg=where)


@pytest.mark.long
@pytest.mark.parametrize("case", processes.CASES)
def test_in_order_not_a_bit_changes(tiny_folder, apart, case):
    one, others = runs(tiny_folder, apart, case, True)
    assert len({int(run["lanes"]) for run in (one, *others.values())}) == 1
    for where, run in others.items():
        assert_equal_bits(run, one, where)
        np.testing.assert_allclose(run["scores"], one["scores"], rtol=0, atol=1e-6, err_msg=where)


@pytest.mark.long
@pytest.mark.parametrize("case", processes.CASES)
def test_in_order_idle_lanes_change_no_bit(tiny_folder, case):
    """Eight devices have a client or two for their four lanes, and one device has enough for all."""
    one, many = (alone(tiny_folder, case, devices, True, clients_per_device="4") for devices in (1, 8))
    assert int(one["lanes"]) == int(many["lanes"]) == 4
    assert_equal_bits(many, one, "8")


# The launcher


def launched(*words: str, **more: str) -> subprocess.CompletedProcess:
    command = [str(LAUNCH / "processes.sh"), "2", *words]
    return subprocess.run(command, env=environment(**more), capture_output=True, text=True, timeout=600)


@pytest.mark.long
def test_a_run_in_two_processes_is_the_run_in_one(tiny_folder, tmp_path, capsys):
    flags = (*SMALL, f"--config.backbone={tiny_folder}", "--config.rounds=3")
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli.main(["train", *flags, "--config.spmd.devices=1", f"--workdir={one}"]) == 0
    table = capsys.readouterr().out.replace(str(one), str(two))
    words = ("train", *flags, f"--workdir={two}")
    run = launched(*words, DEVICES="2")
    assert run.returncode == 0, run.stderr
    assert run.stdout == table, "the first process prints what one alone prints, and nobody else prints"
    assert run.stderr == ""
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert [(summary["devices"], summary["processes"]) for summary in summaries] == [(1, 1), (4, 2)]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]
    scores = [[summary[part] for part in ("global", "personalised", "zero_shot")] for summary in summaries]
    assert jax.tree.structure(scores[1]) == jax.tree.structure(scores[0])
    np.testing.assert_allclose(jax.tree.leaves(scores[1]), jax.tree.leaves(scores[0]), rtol=0, atol=1e-6)
    lines = [(folder / "metrics.jsonl").read_text().splitlines() for folder in (one, two)]
    assert len(lines[1]) == 2
    for ours, theirs in zip(*lines, strict=True):
        assert json.loads(theirs)["loss"] == pytest.approx(json.loads(ours)["loss"], abs=1e-6)

    # The checkpoint of two processes is read by one, and by two.
    assert cli.main(["evaluate", "--quiet", f"--workdir={two}"]) == 0
    rescored = capsys.readouterr().out
    again = launched("evaluate", "--quiet", f"--workdir={two}", DEVICES="2")
    assert (again.returncode, again.stdout) == (0, rescored), again.stderr

    # What the first process alone can see ends all of them, with one line.
    refused = launched(*words, "--config.local.momentum=0.5", DEVICES="2")
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert re.fullmatch(r"fedrsclip: --workdir holds another run: local.momentum = 0.5 .*\n", refused.stderr)

    # Two processes go on with what one has saved, to the same bits.
    more = "--config.rounds=4"
    assert cli.main(["train", *flags, more, "--config.spmd.devices=1", f"--workdir={one}"]) == 0
    resumed = launched(*words, more, DEVICES="2")
    assert resumed.returncode == 0, resumed.stderr
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert [summary["rounds"] for summary in summaries] == [4, 4]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]

    # The last file is written by the first process alone; where it cannot be, the second does not wait for it.
    (two / "comparison.json").unlink()
    (two / "comparison.json").mkdir()
    failed = launched(*words, more, DEVICES="2")
    assert failed.returncode != 0
    assert failed.stderr.startswith("fedrsclip: ")
    assert "comparison.json" in failed.stderr
    assert failed.stderr.count("\n") == 1, failed.stderr


@pytest.mark.long
def test_the_launcher_passes_a_signal_on(tiny_folder, tmp_path):
    folder = tmp_path / "run"
    words = ("train", *SMALL, f"--config.backbone={tiny_folder}", "--config.rounds=1000000", f"--workdir={folder}")
    command = [str(LAUNCH / "processes.sh"), "2", *words]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as launcher:
        try:
            end = time.monotonic() + 300
            while not (folder / "metrics.jsonl").exists():
                assert launcher.poll() is None, launcher.stdout and launcher.stdout.read()
                assert time.monotonic() < end
                time.sleep(0.2)
            launcher.send_signal(signal.SIGTERM)
            # Both ends of the pipe are with the processes: it closes when the last of them has ended.
            printed, _ = launcher.communicate(timeout=60)
        finally:
            launcher.kill()
    assert launcher.returncode == 143
    assert b"saved after round" in printed
    assert any((folder / "checkpoints").iterdir())


def test_the_launcher_ends_with_the_first_failure_and_leaves_nobody(tmp_path):
    """With a program in place of Python that fails in one process and would stay for long in the other."""
    program = tmp_path / "program"
    program.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} "$@"\n'
        '[ "$FEDRSCLIP_PROCESS" = 1 ] && { echo oh dear; exit 3; }\nexec sleep 1000\n'
    )
    program.chmod(0o755)
    run = launched("train", PYTHON=str(program), GRACE="1")
    assert run.returncode == 3
    assert (run.stdout, run.stderr.splitlines()[0]) == ("", "[process 1] oh dear")


@pytest.mark.parametrize("words", [(), ("0", "train"), ("two", "train"), ("2",)])
def test_the_launcher_says_how_it_is_used(words):
    run = subprocess.run([str(LAUNCH / "processes.sh"), *words], capture_output=True, text=True)
    assert run.returncode == 2
    assert run.stderr.startswith("usage: ")


# What processes agree on

AGREEMENTS = """
import sys
from pathlib import Path
from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError

distributed.start()
me = 0 if distributed.first() else 1
print(distributed.exchange({"said": [me, None, 0.1]}))

def attempt(work):
    try:
        return work()
    except (InputError, ValueError, SystemExit) as error:
        return f"{type(error).__name__}: {error}"

def body(error):
    with distributed.together():
        if error is not None:
            raise error
    return "all are well"

bad, worse = InputError("bad"), InputError("no\\ndisk")
for errors in ([None, None], [None, worse], [bad, bad], [ValueError("b"), None]):
    print(attempt(lambda: body(errors[me])))
print(attempt(lambda: distributed.check_same({"backbone": "abc", "images": str(me)})))
print(attempt(lambda: distributed.check_same({"backbone": "abc"})))

folder = Path(sys.argv[1])
def work():
    done = folder / "done"
    found = done.exists()
    done.touch()
    return found
print(distributed.in_turn(folder, work), distributed.in_turn(folder / str(me), lambda: "both"))
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.long
def test_what_one_process_meets_all_learn(tmp_path):
    first, second = (printed.splitlines() for printed in in_two_processes("-c", AGREEMENTS, str(tmp_path)))
    said = "[{'said': [0, None, 0.1]}, {'said': [1, None, 0.1]}]"
    another = "InputError: process 1 has another images than the first; give all hosts the same"
    common = [said, "all are well", "InputError: no disk (process 1)", "InputError: bad"]
    assert first == [*common, "ValueError: b", another, "None", "False both", "['0', 'done']"]
    assert second == [*common, "SystemExit: 1", another, "None", "True both", "['0', 'done']"]


@pytest.mark.parametrize("character", ["a", '"', "\x01", "é", "統", "\U0001f6f0", "\udcff"], ids=ascii)
def test_an_error_of_any_characters_fits_into_a_letter(character):
    """Or the process that has it fails by itself, and the others wait for it."""
    verdict = [True, character * distributed._MESSAGE]
    letter = distributed._letter(verdict)
    assert len(letter) == distributed._LETTER
    assert json.loads(letter) == verdict


def test_a_single_process_agrees_with_itself(tmp_path):
    assert distributed.first()
    assert distributed.exchange([1]) == [[1]]
    assert distributed.in_turn(tmp_path, lambda: 3) == 3
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="as it is"), distributed.together():
        raise ValueError("as it is")


def test_how_processes_find_each_other(refused):
    names = (distributed.PROCESSES, distributed.PROCESS, distributed.COORDINATOR)

    def plan(*values):
        return distributed.plan(dict(zip(names, values, strict=False)))

    assert plan() is None
    assert plan("1") is None
    found = plan("4", "3", "node001:8476")
    assert found is not None
    assert (found["num_processes"], found["process_id"], found["coordinator_address"]) == (4, 3, "node001:8476")
    assert "coordinator_bind_address" not in found
    local = plan("2", "0", "127.0.0.1:8476")
    assert local is not None
    assert local["coordinator_bind_address"] == "127.0.0.1:8476", "nobody else is let in"
    for values, words in (
        (("many",), "FEDRSCLIP_PROCESSES = 'many'"),
        (("4",), "FEDRSCLIP_PROCESS = ''"),
        (("4", "4", "node001:8476"), "FEDRSCLIP_PROCESS = '4' is not a number from 0 to 3"),
        (("4", "0", "node001"), "FEDRSCLIP_COORDINATOR = 'node001'"),
    ):
        with refused(words):
            plan(*values)


def test_verbs_of_one_process_say_so(monkeypatch, capsys):
    monkeypatch.setenv(distributed.PROCESSES, "2")
    monkeypatch.setenv(distributed.PROCESS, "0")
    assert cli.main(["pretrain", "--config=any.py"]) == 2
    assert "pretrain is the work of one process" in capsys.readouterr().err


# Clusters


def test_shell_scripts_are_sound():
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed; it comes with the extra `test`")
    scripts = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")]
    assert len(scripts) >= 4
    found = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


def test_kubernetes_pods_find_each_other():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    assert (service["kind"], job["kind"], job["apiVersion"]) == ("Service", "Job", "batch/v1")
    name = job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    assert service["spec"]["clusterIP"] == "None", "only a headless service names single pods"
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"]
    (container,) = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] >= 1
    given = {entry["name"]: entry.get("value") for entry in container["env"]}
    (index,) = (entry["valueFrom"]["fieldRef"] for entry in container["env"] if entry["name"] == distributed.PROCESS)
    assert index["fieldPath"] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    found = distributed.plan({**given, distributed.PROCESS: "1"})
    assert found is not None
    assert found["num_processes"] == spec["completions"]
    assert found["coordinator_address"].split(":")[0] == f"{name}-0.{pod['subdomain']}"
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(word == f"--workdir={path}/aid" for word in container["command"] for path in mounted)


def test_slurm_starts_one_process_a_host_with_all_its_devices():
    script = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", script, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    own = {distributed.PROCESSES: "auto", "SLURM_NTASKS_PER_NODE": options["ntasks-per-node"]}
    assert f"{distributed.PROCESSES}={own[distributed.PROCESSES]}" in script
    gpus = int(options["gpus-per-node"])
    assert distributed.plan({**own, "SLURM_GPUS_ON_NODE": str(gpus)}) == {"local_device_ids": list(range(gpus))}
    assert distributed.plan(own) == {}, "without GPUs, or off Slurm, JAX finds out"

"""Several devices, several processes, and what starts them."""

import functools
import json
import os
import platform
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

from fedrsclip_jax import cli, distributed, peers, rendezvous
from tests import processes
from tests.conftest import REPOSITORY, xla_flags

pytestmark = pytest.mark.optimised

LAUNCH = REPOSITORY / "launch"
SMALL = (
    "--quiet",
    "--no-report",
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
    return {**os.environ, "XLA_FLAGS": xla_flags(devices), "PYTHON": sys.executable, **more}


def two_processes(*words: str) -> list[subprocess.Popen]:
    """Starts `python WORDS` as two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = {rendezvous.PROCESSES: "2", rendezvous.COORDINATOR: address}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            cwd=REPOSITORY,
            env=environment(**own, **{rendezvous.PROCESS: str(process)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]


def in_two_processes(*words: str) -> list[str]:
    """Runs `python WORDS` as two processes; what each printed, all of it sound."""
    started = two_processes(*words)
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
    """The same run on one device, on several, and in two processes, which have four together."""
    one = alone(folder, case, 1, ordered)
    others = {str(devices): alone(folder, case, devices, ordered) for devices in (2, 8)}
    others["2 x 2"] = {name: apart[f"{case}/{ordered}/{name}"] for name in one}
    assert [int(run["devices"]) for run in others.values()] == [2, 8, 4]
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
    flags = (*SMALL, f"--config.backbone={tiny_folder}", "--config.rounds=3", "--report")
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

    # Two processes go on with what one has saved, to the same bits. The last file is written by the first process
    # alone: where it cannot be, the second does not wait for it.
    more = "--config.rounds=4"
    assert cli.main(["train", *flags, more, "--config.spmd.devices=1", f"--workdir={one}"]) == 0
    (two / "comparison.json").unlink()
    (two / "comparison.json").mkdir()
    resumed = launched(*words, more, DEVICES="2")
    assert resumed.returncode != 0
    assert resumed.stderr.startswith("fedrsclip: ")
    assert "comparison.json" in resumed.stderr
    assert resumed.stderr.count("\n") == 1, resumed.stderr
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, two)]
    assert [summary["rounds"] for summary in summaries] == [4, 4]
    assert summaries[0]["state_sha256"] == summaries[1]["state_sha256"]


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
            printed, _ = launcher.communicate(timeout=300)
        finally:
            launcher.kill()
    assert launcher.returncode == 143
    assert b"saved after round" in printed
    assert f"to go on: {LAUNCH / 'processes.sh'} 2 train ".encode() in printed, "what was given, launcher and all"
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
from fedrsclip_jax.interrupt import Stopped

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
if me == 0:
    (folder / "config.json").touch()
distributed.exchange("it is there")
print(attempt(lambda: distributed.check_seen(folder, ["config.json"])))
print(attempt(lambda: distributed.check_seen(folder if me == 0 else folder / "elsewhere", ["config.json"])))
(folder / "config.json").unlink(missing_ok=True)

# The second is asked to leave while the first works and it waits: both leave, at the same step.
def leave(code):
    raise Stopped(f"at step {len(steps)}", code)
steps = []
def walk(step):
    while True:
        steps.append(None)
        step()
try:
    distributed.in_turn(folder, walk, lambda: 143 * me, leave)
except Stopped as stopped:
    print(stopped, stopped.exit_code)

def work(step):
    step()
    done = folder / "done"
    found = done.exists()
    done.touch()
    return found
print(distributed.in_turn(folder, work), distributed.in_turn(folder / str(me), lambda step: "both"))
print(sorted(path.name for path in folder.iterdir()))
"""


@pytest.mark.long
def test_what_one_process_meets_all_learn(tmp_path):
    first, second = (printed.splitlines() for printed in in_two_processes("-c", AGREEMENTS, str(tmp_path)))
    said = "[{'said': [0, None, 0.1]}, {'said': [1, None, 0.1]}]"
    another = "InputError: process 1 has another images than the first; give all hosts the same"
    common = [said, "all are well", "InputError: no disk (process 1)", "InputError: bad"]
    for lines in (first, second):
        unseen = lines.pop(8)
        assert re.match(r"InputError: --workdir: .* process 1 does not see its config.json; give a --workdir", unseen)
    assert first == [*common, "ValueError: b", another, "None", "None", "at step 1 143", "False both", "['0', 'done']"]
    assert second == [*common, "SystemExit: 1", another, "None", "None", "at step 0 143", "True both", "['0', 'done']"]


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
    assert distributed.in_turn(tmp_path, lambda step: 3) == 3
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="as it is"), distributed.together():
        raise ValueError("as it is")


def test_how_processes_find_each_other(refused):
    names = (rendezvous.PROCESSES, rendezvous.PROCESS, rendezvous.COORDINATOR)

    def plan(*values):
        return rendezvous.plan(dict(zip(names, values, strict=False)))

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
    monkeypatch.setenv(rendezvous.PROCESSES, "2")
    monkeypatch.setenv(rendezvous.PROCESS, "0")
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
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e}
    assert fields[rendezvous.PROCESS] == "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    found = rendezvous.plan({**given, rendezvous.PROCESS: "1"})
    assert found is not None
    assert found["num_processes"] == spec["completions"]
    assert found["coordinator_address"].split(":")[0] == f"{name}-0.{pod['subdomain']}"


def test_kubernetes_lets_a_run_go_on_that_can():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    # A policy for failures needs pods that are not restarted in place.
    assert pod["restartPolicy"] == "Never"
    assert spec["backoffLimit"] > spec["completions"], "all pods of a program fail together"
    rules = {rule["action"]: rule for rule in spec["podFailurePolicy"]["rules"]}
    assert rules["FailJob"]["onExitCodes"] == {"operator": "In", "values": [2]}, "bad input stays bad"
    assert rules["Ignore"]["onPodConditions"] == [{"type": "DisruptionTarget"}]
    assert pod["terminationGracePeriodSeconds"] == 120
    (container,) = pod["containers"]
    fields = {e["name"]: e["valueFrom"]["fieldRef"]["fieldPath"] for e in container["env"] if "valueFrom" in e}
    # What the lock knows itself by; a new pod only comes when the old one is gone.
    assert fields["FEDRSCLIP_HOST"] == "spec.nodeName"
    assert fields["FEDRSCLIP_ATTEMPT"] == "metadata.uid"
    assert fields["FEDRSCLIP_JOB"] == "metadata.labels['batch.kubernetes.io/controller-uid']"
    assert spec["podReplacementPolicy"] == "Failed"
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert mounts.keys() == {"/data", "/results", "/dev/shm"}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert all(any(path in word for word in container["command"]) for path in ("/data", "/results/"))


def test_the_image_has_what_the_pods_start():
    _, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    lines = (LAUNCH / "Dockerfile").read_text().splitlines()
    assert lines[-1] == 'ENTRYPOINT ["fedrsclip"]'
    assert job["spec"]["template"]["spec"]["containers"][0]["command"][0] == "fedrsclip"
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert {"setup.cfg", "pyproject.toml", "fedrsclip_jax"} <= set(copied)
    assert all((REPOSITORY / word).exists() for word in copied)


def of_step(**more: str) -> dict[str, str]:
    """The environment of a task of a step under Slurm."""
    step = {"SLURM_STEP_NODELIST": "node[07-08]", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    job = {"SLURM_JOB_ID": "12", "SLURM_STEP_ID": "3", "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "0"}
    return {rendezvous.PROCESSES: "auto", **job, **step, **more}


def test_slurm_starts_one_process_a_host_with_all_its_devices():
    script = (LAUNCH / "slurm.sbatch").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?", script, re.MULTILINE))
    assert options["ntasks-per-node"] == "1"
    assert options.keys() >= {"requeue", "signal"}
    assert f"{rendezvous.PROCESSES}=auto" in script
    found = rendezvous.plan(of_step())
    assert found is not None
    assert (found["num_processes"], found["process_id"]) == (2, 1)
    assert "local_device_ids" not in found, "all of them"
    several = rendezvous.plan(of_step(SLURM_STEP_TASKS_PER_NODE="2,1", SLURM_LOCALID="1"))
    assert several is not None
    assert several["local_device_ids"] == [1]
    assert rendezvous.plan({rendezvous.PROCESSES: "auto"}) == {}, "off Slurm, JAX finds out"
    assert rendezvous.plan(of_step(SLURM_STEP_NUM_TASKS="1")) is None, "a single task is alone"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("node[001-015],b", "node001"),
        ("n[3,7-9]", "n3"),
        ("n[1-2]-ib,c", "n1-ib"),
    ],
)
def test_the_first_host_of_a_step(nodes, first):
    found = rendezvous.plan(of_step(SLURM_STEP_NODELIST=nodes))
    assert found is not None
    host, _, port = found["coordinator_address"].partition(":")
    assert host == first
    assert 61440 <= int(port) < 65536
    other = rendezvous.plan(of_step(SLURM_STEP_NODELIST=nodes, SLURM_STEP_ID="4"))
    assert other is not None
    assert other["coordinator_address"] != found["coordinator_address"], "two steps of a job may share the host"


def test_a_verb_of_one_process_runs_as_the_only_task_of_a_step(monkeypatch):
    for name, value in of_step(SLURM_STEP_NUM_TASKS="1", SLURM_NTASKS="1", SLURM_PROCID="0").items():
        monkeypatch.setenv(name, value)
    distributed.refuse("sweep")
    assert distributed.first()


def test_processes_reach_the_first_without_a_proxy():
    environment = {"http_proxy": "http://proxy:3128", "no_proxy": "localhost"}
    rendezvous.bypass_proxy(environment, "node001:8476")
    assert (environment["no_proxy"], environment["NO_PROXY"]) == ("node001,localhost", "node001")
    rendezvous.bypass_proxy(environment, "node001:8476")
    assert environment["no_proxy"] == "node001,localhost"
    rendezvous.bypass_proxy(untouched := {}, "node001:8476")
    assert untouched == {}


def test_a_peer_that_never_comes(tmp_path):
    """One line for who is waited for, one when the time is over, and no stack."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = "from fedrsclip_jax import distributed, rendezvous; rendezvous._SAY_EVERY = 1; distributed.start()"
    own = {rendezvous.PROCESSES: "2", rendezvous.PROCESS: "0", rendezvous.COORDINATOR: address, rendezvous.WAIT: "3"}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPOSITORY,
        env=environment(**own),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 1
    *waited, gave_up = run.stderr.splitlines()
    assert waited, "once a second"
    line = rf"fedrsclip: waiting for 2 processes at {re.escape(address)}, [1-3] of 3 s \(FEDRSCLIP_WAIT\)"
    assert all(re.fullmatch(line, said) for said in waited), waited
    assert gave_up.startswith(f"fedrsclip: 2 processes at {address} did not meet within 3 s; ")


WATCHED = """
import os, sys, time
from pathlib import Path
from fedrsclip_jax import distributed, peers

peers._GRACE = 0.5
distributed.start()
peers.remember(Path(sys.argv[1]))
distributed.exchange("all watch")
if not distributed.first():
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), 9)
    if sys.argv[2] == "errs":
        raise ValueError("mine")
    sys.exit()
try:
    distributed.exchange("nobody answers")
except RuntimeError:
    distributed.mourn()
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("fate", "said"),
    [
        ("dies", "process 1 (on {host}) died; the same command goes on after round 12"),
        ("errs", "process 1 (on {host}) ended with an error, which stands in its output; the same command goes on"),
    ],
)
def test_a_dead_peer_is_said_in_a_line_and_ends_all(tmp_path, fate, said):
    for name in ("4", "12", "16.orbax-checkpoint-tmp"):
        (tmp_path / name).mkdir()
    started = two_processes("-c", WATCHED, str(tmp_path), fate)
    try:
        (_, errors), _ = (process.communicate(timeout=300) for process in started)
    finally:
        for process in started:
            process.kill()
    assert started[0].returncode == 1, errors
    assert errors.startswith(f"fedrsclip: {said.format(host=platform.node())}"), errors
    assert "Traceback" not in errors


def test_a_stranger_keeps_nobody_from_being_watched(monkeypatch):
    """Who connects and says nothing, such as a scan of ports, is let go, and the next one is heard."""
    monkeypatch.setattr(peers, "_PATIENCE", 0.1)
    listener = socket.create_server(("127.0.0.1", 0))
    place = listener.getsockname()
    watch = peers._Watch(listener, 1, "secret")
    with socket.create_connection(place) as stranger, socket.create_connection(place) as peer:
        peer.sendall(b"secret 1 node2\nbye\n")
        assert stranger.recv(1) == b""
        end = time.monotonic() + 300
        while not watch._peers:
            assert time.monotonic() < end
            time.sleep(0.01)


def test_the_time_to_wait(refused):
    assert rendezvous.patience({}) == 300
    assert rendezvous.patience({rendezvous.WAIT: "20"}) == 20
    with refused("FEDRSCLIP_WAIT = 'long'"):
        rendezvous.patience({rendezvous.WAIT: "long"})


# The script of a job, with programs in place of Slurm's that say what they were given

SCONTROL = """#!/bin/sh
case "$2" in
  job) echo "   Command=$COMMAND WorkDir=/" ;;
  hostnames) printf 'node1\\nnode2\\n' ;;
esac
"""
SRUN = """#!/bin/sh
printf '%s\\n' "$@"
echo "$FEDRSCLIP_PROCESSES $no_proxy $FEDRSCLIP_LAUNCHER $PWD"
"""


def job_script(tmp_path: Path, *words: str, **more: str) -> tuple[int, list[str], str]:
    """Exit code of the script, as Slurm runs its copy, what it gives `srun` by lines, and its errors."""
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN), ("fedrsclip", "")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    copy = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    own = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "COMMAND": str(LAUNCH / "slurm.sbatch")}
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    own |= {**slurm, "SLURM_SUBMIT_DIR": str(tmp_path), "FEDRSCLIP": str(tmp_path / "fedrsclip"), **more}
    run = subprocess.run(["bash", copy, *words], env=own, capture_output=True, text=True)
    return run.returncode, run.stdout.splitlines(), run.stderr


def test_a_job_from_any_folder_with_few_options(tmp_path):
    code, given, errors = job_script(tmp_path, "train", "--workdir=a b", no_proxy="x")
    assert (code, errors) == (0, "")
    assert given[-3:-1] == ["train", "--workdir=a b"]
    assert given[-1] == f"auto node1,node2,x sbatch {LAUNCH / 'slurm.sbatch'} {tmp_path}"
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1"} <= set(given)
    assert not any("cpus" in word for word in given)
    _, given, _ = job_script(tmp_path, "train", SLURM_CPUS_PER_TASK="8")
    assert "--cpus-per-task=8" in given


@pytest.mark.parametrize("verb", ["sweep", "pretrain", "export"])
def test_a_job_of_a_verb_of_one_process(tmp_path, verb):
    _, given, _ = job_script(tmp_path, verb)
    assert {"--nodes=1", "--ntasks=1"} <= set(given)


def test_a_job_array_numbers_any_word(tmp_path):
    words = ("train", "--config.seed={task}", "--workdir=runs/aid-{task}/{task}")
    _, given, _ = job_script(tmp_path, *words, SLURM_ARRAY_TASK_ID="7")
    assert given[-3:-1] == ["--config.seed=7", "--workdir=runs/aid-7/7"]
    code, given, errors = job_script(tmp_path, *words)
    assert (code, given) == (2, [])
    assert "--array=0-4" in errors


# The script of a TPU slice, with a program in place of gcloud that runs here what it is to run there


GCLOUD = """#!/bin/sh
for word; do
  case "$word" in
    --command=*) cd "$THERE" && HOME="$THERE" exec bash -c "${word#--command=}" ;;
    *.tar.gz) cp "$5" "$THERE/" ;;
  esac
done
"""


def on_a_slice(folder: Path, *words: str) -> subprocess.CompletedProcess:
    (folder / "gcloud").write_text(GCLOUD)
    (folder / "gcloud").chmod(0o755)
    own = {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}", "THERE": str(folder), "TPU": "a", "ZONE": "b"}
    return subprocess.run([str(LAUNCH / "tpu_pod.sh"), *words], env=own, capture_output=True, text=True, timeout=300)


def test_a_slice_runs_and_stops_what_it_is_told(tmp_path):
    program = tmp_path / "fedrsclip_jax" / ".venv" / "bin" / "fedrsclip"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/bash\necho "$FEDRSCLIP_PROCESSES|$FEDRSCLIP_LAUNCHER|$*"\n'
        'trap "echo saved; kill %1; exit 143" TERM\n[ "$1" = train ] || exit 0\n'
        'touch "$THERE/runs"; sleep 600 >/dev/null & wait $!\n'
    )
    program.chmod(0o755)
    told = on_a_slice(tmp_path, "evaluate", "--workdir=a b")
    assert told.stdout == "auto|TPU=a ZONE=b launch/tpu_pod.sh|evaluate --workdir=a b\n", told.stderr
    own = {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "THERE": str(tmp_path), "TPU": "a", "ZONE": "b"}
    with subprocess.Popen([LAUNCH / "tpu_pod.sh", "train"], env=own, stdout=subprocess.PIPE, text=True) as train:
        try:
            end = time.monotonic() + 300
            while not (tmp_path / "runs").exists():
                assert time.monotonic() < end
                time.sleep(0.05)
            assert on_a_slice(tmp_path, "stop").stdout == ""
            printed, _ = train.communicate(timeout=300)
        finally:
            train.kill()
    assert printed.endswith("saved\n")
    assert "nothing runs here" in on_a_slice(tmp_path, "stop").stdout


def test_a_slice_without_a_new_python_is_refused(tmp_path):
    for name in ("python3", "python3.11", "python3.12", "python3.13"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    refused = on_a_slice(tmp_path, "setup")
    assert refused.returncode == 2
    assert "no Python 3.11 or newer" in refused.stderr

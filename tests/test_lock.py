"""One run to a folder: locks held, left behind and fought over by real processes."""

import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fedrsclip_jax import workdir
from fedrsclip_jax.lock import FILE, Holder, hold, turn

# A file system without `flock`, which is the system's and not ours to have.
WITHOUT_FLOCK = """
import errno, fcntl
def refuse(*_):
    raise OSError(errno.ENOLCK, "no locks here")
fcntl.flock = refuse
"""
HOLDS = """
import sys
from pathlib import Path
from fedrsclip_jax.lock import hold
with hold(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
FORKS = """
import os, sys, time
from pathlib import Path
from fedrsclip_jax.lock import hold
with hold(Path(sys.argv[1])):
    child = os.fork()
    if child == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    sys.stdin.read()
"""
FORK_ENDS = """
import os, sys
from pathlib import Path
from fedrsclip_jax.lock import hold
with hold(Path(sys.argv[1])):
    child = os.fork()
    if child:
        print("ended", os.waitpid(child, 0)[1], flush=True)
        sys.stdin.read()
"""
FIGHTS = """
import os, sys
from pathlib import Path
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.lock import hold
folder, turns = Path(sys.argv[1]), 0
print("ready", flush=True)
sys.stdin.readline()
while turns < 40:
    try:
        with hold(folder / "run"):
            os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))  # fails if anybody else is inside
            os.unlink(folder / "inside")
            turns += 1
    except InputError:
        pass
"""


@contextlib.contextmanager
def process(code: str, folder: Path):
    """A process that runs `code` on a folder, up to its first line, which is given too."""
    started = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with started:
        assert started.stdout
        try:
            yield started, started.stdout.readline().strip()
        finally:
            started.kill()


@pytest.fixture
def without_flock(monkeypatch) -> str:
    """No `flock` in this process; and the code that takes it from another."""
    monkeypatch.setattr("fcntl.flock", None)  # what was there is put back afterwards
    exec(WITHOUT_FLOCK, {})
    return WITHOUT_FLOCK


@pytest.fixture(params=["flock", "no flock"])
def system(request) -> str:
    """What a process is to run first to live on such a system; this one lives there already."""
    return request.getfixturevalue("without_flock") if request.param == "no flock" else ""


def record(folder: Path, **changes) -> None:
    """A lock that lies there, of this machine unless changed."""
    with hold(folder):
        mine = json.loads((folder / FILE).read_text())
    (folder / FILE).write_text(json.dumps({**mine, **changes}))


def dead_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def test_a_lock_is_there_while_it_is_held_and_says_whose(tmp_path, system):
    with hold(tmp_path) as previous:
        assert previous is None
        said = json.loads((tmp_path / FILE).read_text())
        assert (said["pid"], said["host"]) == (os.getpid(), platform.node())
        assert said["since"].startswith(time.strftime("%Y-"))
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_released_by_an_error_too(tmp_path, system):
    with pytest.raises(KeyboardInterrupt), hold(tmp_path):
        raise KeyboardInterrupt
    with hold(tmp_path) as previous:
        assert previous is None


def test_the_second_is_refused_and_told_who_is_the_first(tmp_path, system, refused):
    with process(system + HOLDS, tmp_path) as (first, said):
        assert said == "held"
        with refused(tmp_path, f"process {first.pid} on {platform.node()} since 2", "another folder"), hold(tmp_path):
            pass
        first.communicate()  # its input ends, and so does it
        assert first.returncode == 0
        with hold(tmp_path) as previous:
            assert previous is None


def test_one_process_holds_a_folder_once(tmp_path, system, refused):
    with hold(tmp_path):
        with refused(f"process {os.getpid()}"), hold(tmp_path):
            pass
        with hold(tmp_path.parent):
            pass


def test_the_lock_of_a_killed_process_is_taken_over(tmp_path, system):
    with process(system + HOLDS, tmp_path) as (first, _):
        first.send_signal(signal.SIGKILL)
        first.wait()
        assert (tmp_path / FILE).exists()
        with hold(tmp_path) as previous:
            assert previous is not None
            assert previous.pid == first.pid
            assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_who_claims_a_folder_is_told_from_whom(tmp_path):
    said = []
    with process(HOLDS, tmp_path) as (first, _):
        first.send_signal(signal.SIGKILL)
        first.wait()
        with workdir.claim(tmp_path, said.append):
            assert len(said) == 1
        with workdir.claim(tmp_path, said.append):
            pass
    assert len(said) == 1
    assert said[0].startswith(f"{tmp_path}: taken over from process {first.pid} ")


def test_a_fork_does_not_keep_the_lock_of_its_dead_parent(tmp_path):
    with process(FORKS, tmp_path) as (first, child):
        first.send_signal(signal.SIGKILL)
        first.wait()
        os.kill(int(child), 0)
        try:
            with hold(tmp_path) as previous:
                assert previous is not None
                assert previous.pid == first.pid
        finally:
            os.kill(int(child), signal.SIGKILL)


def test_a_fork_that_ends_does_not_release_the_lock_of_its_parent(tmp_path, system, refused):
    with process(system + FORK_ENDS, tmp_path) as (first, said):
        assert said == "ended 0"
        with refused(f"process {first.pid}"), hold(tmp_path):
            pass


def test_a_process_that_got_the_number_of_a_dead_holder_does_not_count(tmp_path):
    record(tmp_path, pid=os.getppid())
    with hold(tmp_path) as previous:
        assert previous is not None
        assert previous.pid == os.getppid()


def test_without_flock_a_process_of_that_number_is_believed_to_be_the_holder(tmp_path, without_flock, refused):
    record(tmp_path, pid=os.getppid())
    with refused(f"process {os.getppid()}", f"delete {tmp_path / FILE}"), hold(tmp_path):
        pass


def test_without_flock_half_a_record_may_be_about_to_be_finished(tmp_path, without_flock, refused):
    (tmp_path / FILE).write_text("{")
    with refused("another process", f"delete {tmp_path / FILE}"), hold(tmp_path):
        pass


def test_another_machines_lock_is_left_alone(tmp_path, system, refused):
    record(tmp_path, pid=dead_pid(), host="elsewhere", boot="another")
    before = (tmp_path / FILE).read_text()
    with refused("on elsewhere", f"delete {tmp_path / FILE}"), hold(tmp_path):
        pass
    assert (tmp_path / FILE).read_text() == before
    (tmp_path / FILE).unlink()
    with hold(tmp_path) as previous:
        assert previous is None


def test_a_container_of_the_same_machine_is_no_other_machine(tmp_path, system):
    with hold(tmp_path):
        if not json.loads((tmp_path / FILE).read_text())["boot"]:
            pytest.skip("this system does not say when it was started")
    record(tmp_path, pid=dead_pid(), host="elsewhere")
    with hold(tmp_path) as previous:
        assert previous is not None
        assert previous.host == "elsewhere"


def test_a_job_that_was_started_again_takes_over_from_itself(tmp_path, system, monkeypatch, refused):
    """On another host, as a cluster has it; another step of the same start, and another job, wait."""
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "big")
    record(tmp_path, pid=dead_pid(), host="elsewhere", boot="another", job="big/12", attempt="0")
    with refused("on elsewhere"), hold(tmp_path):
        pass
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with hold(tmp_path) as previous:
        assert previous is not None
        assert previous.host == "elsewhere"
        now = json.loads((tmp_path / FILE).read_text())
        assert (now["job"], now["attempt"]) == ("big/12", "1")
    record(tmp_path, pid=dead_pid(), host="elsewhere", boot="another", job="big/13", attempt="0")
    with refused("on elsewhere"), hold(tmp_path):
        pass


def test_a_pod_is_known_by_its_node_and_its_job(tmp_path, monkeypatch):
    for name, value in {"HOST": "node001", "JOB": "an-id", "ATTEMPT": "a-pod"}.items():
        monkeypatch.setenv(f"FEDRSCLIP_{name}", value)
    with hold(tmp_path):
        now = json.loads((tmp_path / FILE).read_text())
        assert (now["host"], now["job"], now["attempt"]) == ("node001", "an-id", "a-pod")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"pid": 1}', '{"pid": 1, "host": 2, "since": "", "boot": ""}', "\x00"]
)
def test_half_a_record_is_nobodys(tmp_path, text):
    """As a crash may leave it; only with `flock` is it known that nobody is about to finish it."""
    (tmp_path / FILE).write_text(text)
    with hold(tmp_path) as previous:
        assert previous is None


def test_a_lock_that_was_deleted_and_taken_by_another_is_not_released(tmp_path, system):
    with contextlib.ExitStack() as stack:
        with hold(tmp_path):
            (tmp_path / FILE).unlink()
            second, _ = stack.enter_context(process(system + HOLDS, tmp_path))
        assert json.loads((tmp_path / FILE).read_text())["pid"] == second.pid


@pytest.mark.parametrize("make", [Path.mkdir, lambda path: path.symlink_to(path.with_name("precious")), os.mkfifo])
def test_something_else_under_the_name_of_the_lock(tmp_path, make, refused):
    (tmp_path / "precious").write_text("not ours")
    make(tmp_path / FILE)
    with refused(tmp_path / FILE, "cannot be written"), hold(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "not ours"


def test_a_folder_that_cannot_be_written_to_or_is_missing(tmp_path, refused):
    with refused("No such file", "name another folder"), hold(tmp_path / "missing"):
        pass
    if os.getuid() == 0:
        return  # root writes everywhere
    tmp_path.chmod(0o500)
    try:
        with refused("Permission denied", tmp_path), hold(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_no_two_are_ever_inside(tmp_path, system):
    """Five processes take and release the lock forty times each, as fast as they can."""
    (tmp_path / "run").mkdir()
    with contextlib.ExitStack() as stack:
        fighters = [stack.enter_context(process(system + FIGHTS, tmp_path))[0] for _ in range(5)]
        for fighter in fighters:
            assert fighter.stdin
            fighter.stdin.write("go\n")
            fighter.stdin.flush()
        assert [fighter.wait(timeout=120) for fighter in fighters] == [0] * 5
    assert list((tmp_path / "run").iterdir()) == []


def test_a_turn_is_waited_for_and_says_for_whom(tmp_path, system):
    path, told, order = tmp_path / "entry.lock", [], []

    def second():
        with turn(path, told.append):
            order.append("second")

    with turn(path, told.append) as ours:
        assert ours
        with turn(path, None) as theirs:
            assert not theirs, "who does not wait is told so"
        thread = threading.Thread(target=second)
        thread.start()
        while not told:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    (said,) = told
    assert said.startswith(f"process {os.getpid()} on ")
    assert said.endswith(f"delete {path}")
    assert not path.exists()


def test_a_turn_is_not_waited_for_in_vain(tmp_path, system):
    """Behind a dead process, or the empty file that an older version has left."""
    path, told = tmp_path / "entry.lock", []
    path.write_text(json.dumps(Holder.me()._replace(pid=dead_pid())._asdict()))
    with turn(path, told.append) as ours:
        assert ours
    path.touch()
    os.utime(path, (1e9, 1e9))
    with turn(path, told.append) as ours:
        assert ours
    assert told == []


def test_without_flock_a_turn_of_another_machine_is_left_alone(tmp_path, without_flock):
    path = tmp_path / "entry.lock"
    path.write_text(json.dumps(Holder.me()._replace(host="elsewhere", boot="another")._asdict()))
    before = path.read_bytes()
    with turn(path, None) as ours:
        assert not ours
    assert path.read_bytes() == before

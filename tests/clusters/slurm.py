"""What `launch/slurm.sbatch` does on a real Slurm of two hosts on this machine; see README.md beside this file.

    python -m tests.clusters.slurm              all cases
    python -m tests.clusters.slurm NAME ...     those of these names
    python -m tests.clusters.slurm --keep ...   and keeps logs of jobs and daemons

As root, with Debian's packages slurm-wlm and munge. Prints a line a case; exit code 1 if one fails.
"""

import os
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from tests.clusters import loopback
from tests.clusters.loopback import Slurm, ask, ended, job, wait_for

REPOSITORY = Path(__file__).parents[2]
SCRIPT = REPOSITORY / "launch" / "slurm.sbatch"
SIZES = (
    "--config.data.scenes.count=64",
    "--config.data.image_size=16",
    "--config.partition.clients=2",
    "--config.partition.min_examples=1",
    "--config.seeds=1",
    "--config.baselines=",
)
# No line of the script but what a machine without GPUs forbids; a host lends two cores.
OPTIONS = ("--gpus-per-node=0", "--cpus-per-task=2", "--time=10")
FOREVER = "--config.rounds=1000000"


class Bench:
    """A folder of jobs on a running Slurm."""

    def __init__(self, slurm: Slurm, folder: Path):
        self.slurm, self.folder = slurm, folder
        self.train = ("train", *SIZES)
        # Another program of the same words: this tree, on a CPU of one device.
        self.program = folder / "fedrsclip"
        self.program.write_text(
            f"#!/bin/sh\nexport PYTHONPATH={REPOSITORY} JAX_PLATFORMS=cpu FEDRSCLIP_CACHE={folder}/cache\n"
            f'exec {sys.executable} -m fedrsclip_jax.cli "$@"\n'
        )
        self.program.chmod(0o755)

    def submit(self, *words: str, options: tuple[str, ...] = OPTIONS, folder: Path | None = None, **more: str) -> str:
        own = {"FEDRSCLIP": str(self.program), **more}
        return self.slurm.submit(SCRIPT, *words, options=options, folder=folder or self.folder, **own)

    def log(self, number: str, folder: Path | None = None) -> str:
        path = (folder or self.folder) / f"fedrsclip-{number}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def saying(self, number: str, words: str, seconds: float = 300) -> None:
        """Waits until a job's log says something."""
        wait_for(lambda: words in self.log(number), f"{words!r} in the log of job {number}", seconds)


def pids(host: str, number: str) -> list[int]:
    """Process ids of this package on a host, in a job."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes().split(b"\0")
            said = (path / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        own = {f"SLURMD_NODENAME={host}".encode(), f"SLURM_JOB_ID={number}".encode()}
        if b"fedrsclip_jax.cli" in words and own <= set(said):
            found.append(int(path.name))
    return found


def one_program(bench: Bench) -> None:
    """Two processes train as one program, from another folder than the clone, behind a proxy that leads nowhere."""
    nowhere = "http://127.0.0.1:9"
    words = (*bench.train, "--config.rounds=2", "--workdir=together")
    number = bench.submit(*words, http_proxy=nowhere, https_proxy=nowhere, FEDRSCLIP_WAIT="60")
    assert ended(number) == "COMPLETED 0", bench.log(number)
    summary = (bench.folder / "together" / "summary.json").read_text()
    assert '"processes": 2' in summary, summary


def one_process(bench: Bench) -> None:
    """A verb that one process does runs on one host, and so does a job of a single task."""
    number = bench.submit("data", *SIZES[:4])
    assert ended(number) == "COMPLETED 0", bench.log(number)
    number = bench.submit(*bench.train, "--dry-run", options=(*OPTIONS, "--nodes=1"))
    assert ended(number) == "COMPLETED 0", bench.log(number)


def refused(bench: Bench) -> None:
    """Two tasks that are refused end with 2, each time, in one line: before they meet, and after."""
    for _ in range(3):
        for word in ("--config.local.batch_size=0", "--config.method.name=none"):
            number = bench.submit(*bench.train, word, "--workdir=refused")
            assert ended(number) == "FAILED 2", (ended(number), bench.log(number))
    assert bench.log(number).count("fedrsclip: ") == 1, bench.log(number)


def terminated(bench: Bench) -> None:
    """TERM, while images are encoded and while rounds go on: saved, 143, and the command that was given."""
    for name, more in (("encoding", ("--config.data.scenes.count=100000",)), ("rounds", (FOREVER,))):
        number = bench.submit(*bench.train, *more, f"--workdir={name}")
        if name == "encoding":
            bench.saying(number, "encoding images", 300)
            time.sleep(5)
        else:
            wait_for(lambda: (bench.folder / "rounds" / "metrics.jsonl").exists(), "rounds", 400)
        ask("scancel", "--signal=TERM", number)
        assert ended(number, 150) == "FAILED 143", bench.log(number)
        words = "images are encoded; to go on: sbatch" if name == "encoding" else "saved after round"
        assert words in bench.log(number), bench.log(number)
        assert f"to go on: sbatch {SCRIPT} train " in bench.log(number), bench.log(number)


def never_comes(bench: Bench) -> None:
    """A peer that does not start: who is waited for, and one line after the time that was set."""
    half = bench.folder / "half"
    half.write_text(f'#!/bin/sh\n[ "$SLURM_PROCID" = 1 ] && exec sleep 300\nexec {bench.program} "$@"\n')
    half.chmod(0o755)
    number = bench.submit(*bench.train, "--workdir=never", FEDRSCLIP=str(half), FEDRSCLIP_WAIT="35")
    state = ended(number, 200)
    log = bench.log(number)
    assert "waiting for 2 processes at node1:" in log, log
    assert "did not meet within 35 s" in log, log
    assert not any(words in log for words in ("Traceback", "***")), log
    assert state.startswith("FAILED"), state


def dies(bench: Bench) -> None:
    """A process that is killed, the other and the first: one line first, and the same command goes on."""
    for host, said in (("node2", "process 1 (on node2) died"), ("node1", "process 0 died")):
        run = bench.folder / f"dies-{host}"
        words = (*bench.train, "--config.checkpoint.every=2", "--config.eval.every=2", f"--workdir={run}")
        number = bench.submit(*words, FOREVER)
        wait_for(lambda run=run: any(path.name.isdecimal() for path in run.glob("checkpoints/*")), "a checkpoint", 400)
        for pid in pids(host, number):
            os.kill(pid, signal.SIGKILL)
        state = ended(number, 200)
        ours = next((line for line in bench.log(number).splitlines() if "died" in line), "")
        assert ours.startswith(f"fedrsclip: {said}; the same command goes on after round "), bench.log(number)
        assert state.startswith("FAILED"), state
        rounds = max(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdecimal()) + 2
        number = bench.submit(*words, f"--config.rounds={rounds}")
        assert ended(number) == "COMPLETED 0", bench.log(number)
        assert "goes on after round" in bench.log(number), bench.log(number)


def requeued(bench: Bench) -> None:
    """A job that is killed, and put back by Slurm, takes over its own lock on another host than before."""
    run = bench.folder / "requeued"
    words = (*bench.train, FOREVER, "--config.eval.every=2", "--config.checkpoint.every=2", f"--workdir={run}")
    number = bench.submit(*words, options=(*OPTIONS, "--nodes=1"))
    wait_for(lambda: any(path.name.isdecimal() for path in run.glob("checkpoints/*")), "a checkpoint", 400)
    first = job(number)["NodeList"]
    for pid in pids(first, number):
        os.kill(pid, signal.SIGKILL)
    ended(number, 100)
    ask("scontrol", "update", f"NodeName={first}", "State=DRAIN", "Reason=test")
    try:
        ask("scontrol", "requeue", number)
        bench.saying(number, "taken over from process")
        assert f" on {first} since" in bench.log(number), bench.log(number)
        bench.saying(number, "goes on after round")
        assert job(number)["NodeList"] not in ("", first)
    finally:
        ask("scancel", number)
        ended(number, 100)
        ask("scontrol", "update", f"NodeName={first}", "State=RESUME")


def array(bench: Bench) -> None:
    """The number of the task stands for {task} in any word; outside of an array it is refused."""
    words = (*bench.train, "--config.rounds=1", "--config.seed={task}", "--workdir=array-{task}")
    number = bench.submit(*words, options=(*OPTIONS, "--array=3-4", "--nodes=1"))
    for task in (3, 4):
        assert ended(f"{number}_{task}") == "COMPLETED 0"
        assert f'"seed": {task}' in (bench.folder / f"array-{task}" / "summary.json").read_text()
    number = bench.submit(*words)
    assert ended(number) == "FAILED 2"
    assert "{task} is the number in a job array" in bench.log(number)


def options_left_out(bench: Bench) -> None:
    """Without cores a task and tasks a host, as other scripts have it."""
    bare = bench.folder / "launch" / "bare.sbatch"
    bare.parent.mkdir(exist_ok=True)
    kept = [line for line in SCRIPT.read_text().splitlines() if not re.match("#SBATCH --(ntasks|cpus|gpus)-", line)]
    bare.write_text("\n".join(kept) + "\n")
    words = (*bench.train, "--config.rounds=1", "--workdir=bare")
    more = {"FEDRSCLIP": str(bench.program)}
    number = bench.slurm.submit(bare, *words, options=("--time=10",), folder=bench.folder, **more)
    assert ended(number) == "COMPLETED 0", bench.log(number)
    assert '"processes": 2' in (bench.folder / "bare" / "summary.json").read_text()


CASES: tuple[Callable[[Bench], None], ...] = (
    one_program,
    one_process,
    refused,
    terminated,
    never_comes,
    dies,
    requeued,
    array,
    options_left_out,
)


def main() -> int:
    names = [word for word in sys.argv[1:] if not word.startswith("-")]
    loopback.enter("tests.clusters.slurm")
    folder = Path(tempfile.mkdtemp(prefix="fedrsclip-slurm-"))
    failed = 0
    try:
        with Slurm(folder / "slurm") as slurm:
            (folder / "jobs").mkdir()
            bench = Bench(slurm, folder / "jobs")
            for case in CASES:
                if names and case.__name__ not in names:
                    continue
                began, outcome = time.monotonic(), "passed"
                try:
                    case(bench)
                except Exception:
                    failed, outcome = failed + 1, "FAILED"
                    traceback.print_exc()
                print(f"{case.__name__:20} {outcome} {time.monotonic() - began:6.1f} s   {case.__doc__}", flush=True)
    finally:
        if "--keep" in sys.argv:
            print(f"logs in {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

"""A Slurm of two hosts on this machine, which sees nothing but loopback and ends with whoever started it.

`enter` puts this process into namespaces of its own: a network that has loopback alone, names of hosts, process ids.
The last process of such a namespace takes all others with it, so no daemon outlives the program, however that ends.
"""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

HOSTS = ("node1", "node2")
_ADDRESSES = {"control": "10.77.0.9", "node1": "10.77.0.1", "node2": "10.77.0.2"}  # all of the interface lo
_INSIDE = "FEDRSCLIP_TEST_CLUSTER"  # set in the namespaces
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo", "scontrol", "unshare", "mount", "ip")
_PATH = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"

_CONFIGURATION = """
ClusterName=loopback
SlurmctldHost=control(10.77.0.9)
SlurmctldPort=17000
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdSpoolDir={folder}/spool-%n
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdLogFile={folder}/slurmd-%n.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdTimeout=60
KillWait=30
MinJobAge=3600
NodeName=node1 NodeHostname=node1 NodeAddr=10.77.0.1 Port=17001 CPUs=4 RealMemory=4000
NodeName=node2 NodeHostname=node2 NodeAddr=10.77.0.2 Port=17002 CPUs=4 RealMemory=4000
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
"""


def enter(module: str) -> None:
    """Starts `python -m MODULE` with the same words again, alone with loopback; returns in there.

    Raises:
      SystemExit: a program is missing or the namespaces are not allowed; and at the end, with the code from in there.
    """
    if os.environ.pop(_INSIDE, ""):
        return
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_PATH) is None]
    if missing:
        sys.exit(f"missing: {', '.join(missing)}; as root: apt-get install slurm-wlm munge util-linux iproute2")
    apart = ["unshare", "--mount", "--net", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*apart, sys.executable, "-m", module, *sys.argv[1:]]
    with subprocess.Popen(command, env={**os.environ, "PATH": _PATH, _INSIDE: "1"}) as inside:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        try:
            sys.exit(inside.wait())
        finally:
            inside.kill()  # and so the first process of the namespaces, with which all others end


class Slurm:
    """Daemons of a control host and two hosts that compute, for use in a `with`, in the namespaces of `enter`.

    Each host has a name and a boot id of its own, as two machines have.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []

    def __enter__(self) -> "Slurm":
        folder = self.folder
        for name in ("state", *(f"spool-{host}" for host in HOSTS)):
            (folder / name).mkdir(parents=True)
        _write(folder / "hosts", "127.0.0.1 localhost\n" + "".join(f"{a} {host}\n" for host, a in _ADDRESSES.items()))
        _write(folder / "slurm.conf", _CONFIGURATION.format(folder=folder))
        (folder / "munge.key").write_bytes(secrets.token_bytes(128))
        (folder / "munge.key").chmod(0o400)
        os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        for address in _ADDRESSES.values():
            subprocess.run(["ip", "address", "add", f"{address}/32", "dev", "lo"], check=True)
        subprocess.run(["mount", "--bind", folder / "hosts", "/etc/hosts"], check=True)
        subprocess.run(["hostname", "control"], check=True)
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "log", "pid", "seed")]
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *files)
        wait_for(lambda: (folder / "munge.socket").exists(), "munged")
        self._start("slurmctld", "-D")
        for host in HOSTS:
            _write(folder / f"boot-{host}", f"{uuid.uuid4()}\n")
            own = f"hostname {host} && mount --bind {folder}/boot-{host} /proc/sys/kernel/random/boot_id"
            self._start("unshare", "--uts", "--mount", "sh", "-c", f"{own} && exec slurmd -D")
        wait_for(lambda: ask("sinfo", "-h", "-o", "%T %D") == "idle 2", "two idle hosts")
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    def submit(self, script: Path, *words: str, options: Sequence[str] = (), folder: Path, **more: str) -> str:
        """`sbatch OPTIONS SCRIPT WORDS` from a folder; returns the id of the job."""
        command = ["sbatch", "--parsable", *options, str(script), *words]
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, **more}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _start(self, *command: str) -> None:
        with (self.folder / "daemons.log").open("ab") as log:
            self._daemons.append(subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL))


def ask(*command: str) -> str:
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def job(number: str) -> dict[str, str]:
    """What Slurm says of a job, such as `JobState` and `ExitCode`."""
    return dict(word.split("=", 1) for word in ask("scontrol", "show", "job", number).split() if "=" in word)


def ended(number: str, seconds: float = 500) -> str:
    """Waits for the end of a job; returns its state and exit code, such as `FAILED 2`."""
    alive = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")
    wait_for(lambda: job(number).get("JobState", "PENDING") not in alive, f"the end of job {number}", seconds)
    said = job(number)
    return f"{said['JobState']} {said['ExitCode'].split(':')[0]}"


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)


def wait_for(for_what: Callable[[], bool], name: str, seconds: float = 300) -> None:
    """Waits until something is so; TimeoutError where it is not in time."""
    end = time.monotonic() + seconds
    while not for_what():
        if time.monotonic() > end:
            raise TimeoutError(f"{name}: not within {seconds:.0f} s")
        time.sleep(0.3)

"""A lock on a run's folder that says who holds it, so that no two runs write into one.

`DIR/.lock` names the holder. Where the system has `flock`, the file is locked as well: the system lets go of that when
a process ends, however it ends, so a lock that is left behind by a dead process is told from one that is held without
trusting process ids, which are used again. Locks of other machines cannot be told apart like that, as not every network
file system carries `flock` over; they are refused, with the remedy. A job that its cluster has started again, perhaps
on another machine, takes over from its own earlier attempt, which the cluster has ended before.
"""

import errno
import json
import os
import platform
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from fedrsclip_jax.errors import InputError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

FILE = ".lock"
_POLL = 0.2  # seconds between two looks at a lock that is waited for
_UNSIGNED = 60.0  # seconds after which nobody is about to write who holds a new lock
_BOOT, _PIDS = Path("/proc/sys/kernel/random/boot_id"), "/proc/self/ns/pid"

# What `flock` answers where a file system has none.
_UNSUPPORTED = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}


class Holder(NamedTuple):
    """Who holds a lock.

    Attributes:
      pid: of the process.
      host: name of its machine.
      since: when it took the lock, local time with the offset to UTC.
      boot: of the machine, a new one each time it starts; empty where the system does not say. Containers have names
        of their own and share it.
      pids: in which process ids count; containers have their own, and see nothing of each other's.
      job: of a cluster, as Slurm or `FEDRSCLIP_JOB` says; empty outside.
      attempt: which start of that job, as Slurm or `FEDRSCLIP_ATTEMPT` says; no two of a job are alive at a time.
    """

    pid: int
    host: str
    since: str
    boot: str
    pids: str = ""
    job: str = ""
    attempt: str = ""

    @classmethod
    def me(cls) -> "Holder":
        boot = pids = ""
        with suppress(OSError):
            boot = _BOOT.read_text().strip()
        with suppress(OSError):
            pids = os.readlink(_PIDS)
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        said = os.environ
        host = said.get("FEDRSCLIP_HOST") or platform.node()  # a container knows its own name alone
        job, attempt = said.get("FEDRSCLIP_JOB", ""), said.get("FEDRSCLIP_ATTEMPT", "")
        if not job and "SLURM_JOB_ID" in said:
            job = f"{said.get('SLURM_CLUSTER_NAME', '')}/{said['SLURM_JOB_ID']}"
            attempt = said.get("SLURM_RESTART_COUNT", "0")
        return cls(os.getpid(), host, since, boot, pids, job, attempt)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


_held: set[int] = set()  # files that this process has locked


@contextmanager
def hold(workdir: Path) -> Iterator[Holder | None]:
    """Holds the lock on a folder that exists, for the body of a `with`.

    Yields:
      The dead holder from whom the lock was taken over, if any.

    Raises:
      InputError: the folder is in use, or cannot be written to.
    """
    path = workdir / FILE
    try:
        file, previous = _take(path)
    except OSError as error:
        raise InputError(
            f"--workdir: {path} cannot be written ({error.strerror}); make {workdir} writable, or name another folder"
        ) from error
    with _holding(file, path):
        yield previous


@contextmanager
def turn(path: Path, waiting: Callable[[str], None] | None) -> Iterator[bool]:
    """Holds the lock file `path` for the body of a `with`, after whoever holds it now.

    For work that need not be done twice. Unlike `hold` it refuses nobody, and trusts `flock` across machines. Without
    `flock` the file itself is the lock: one process alone can make it. One that a dead process of this machine has left
    is removed.

    Args:
      waiting: told once for whom this waits; None does not wait.

    Yields:
      Whether we have the lock; always, unless `waiting` is None.

    Raises:
      OSError: the file cannot be written.
    """
    told = False
    while True:
        with ExitStack() as stack:
            file, created = _open(path)
            stack.callback(os.close, file)
            locked = flock(file)
            if _is_at(file, path) if locked else locked is None and created:
                _write_holder(file, Holder.me())
                stack.pop_all()
                break
            holder, written = _read(file)
            left = locked is None and _left_behind(file, holder)
        if left:
            _set_aside(path, written)
        elif not locked:  # else its holder has deleted it just now
            if waiting is None:
                yield False
                return
            if not told:
                waiting(f"{holder or 'another process'}; if that is dead, delete {path}")
                told = True
            time.sleep(_POLL)
    with _holding(file, path):
        yield True


@contextmanager
def _holding(file: int, path: Path) -> Iterator[None]:
    """Lets go of a lock after the body of a `with`."""
    _held.add(file)
    try:
        yield
    finally:
        if file in _held:  # not so in a fork, which owns nothing
            with suppress(OSError):
                if _is_at(file, path):  # a lock that somebody deleted is perhaps another run's by now
                    path.unlink()
            _held.discard(file)
            os.close(file)


def _take(path: Path) -> tuple[int, Holder | None]:
    previous = None
    while True:
        file, created = _open(path)
        try:
            taken, holder = _sign(file, created, path)
        except BaseException:
            os.close(file)
            raise
        previous = holder or previous
        if taken:
            return file, previous
        os.close(file)


def _open(path: Path) -> tuple[int, bool]:
    """The file, and whether it is new; never what a link points to."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    while True:
        with suppress(FileExistsError):
            return os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666), True
        with suppress(FileNotFoundError):  # gone since; then it can be made
            return os.open(path, flags), False


def _sign(file: int, created: bool, path: Path) -> tuple[bool, Holder | None]:
    """Locks the file and writes who we are: whether that went well, or is to be tried again, and who was there."""
    me, locked = Holder.me(), flock(file)
    holder, written = _read(file)
    in_use = f"--workdir: {path.parent} is in use by {holder or 'another process'}"
    if locked is False:
        raise InputError(f"{in_use}; wait until it ends, or name another folder")
    if not _is_at(file, path):  # its holder deleted it before we locked it
        return False, None
    earlier = holder is not None and _earlier_attempt(holder, me)
    if holder is not None and not (earlier or _same_machine(holder, me)):
        raise InputError(f"{in_use}, which cannot be seen from here; if that process is dead, delete {path}")
    if locked is None and not created:
        if not earlier and (holder is None or holder.pids != me.pids or _alive(holder.pid)):
            raise InputError(f"{in_use}; wait until it ends, name another folder, or delete {path} if it is dead")
        _set_aside(path, written)
        return False, holder
    _write_holder(file, me)
    return True, holder


def _write_holder(file: int, me: Holder) -> None:
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(me._asdict()).encode() + b"\n", 0)


def _left_behind(file: int, holder: Holder | None) -> bool:
    """Whether nobody can hold a lock any more that only its file tells of."""
    if holder is None:  # empty, as older versions left them, or cut off
        return time.time() - os.fstat(file).st_mtime > _UNSIGNED
    me = Holder.me()
    if _earlier_attempt(holder, me):
        return True
    return _same_machine(holder, me) and holder.pids == me.pids and not _alive(holder.pid)


def flock(file: int, wait: bool = False) -> bool | None:
    """Whether we have the system's lock on a file now; None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


def _read(file: int) -> tuple[Holder | None, bytes]:
    """What the file says; no holder if it says nothing of sense, as after a crash while it was written."""
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    written = os.pread(file, 4096, 0)
    with suppress(ValueError, TypeError):
        holder = Holder(**json.loads(written))
        names = (holder.host, holder.since, holder.boot, holder.pids, holder.job, holder.attempt)
        if isinstance(holder.pid, int) and all(isinstance(name, str) and name.isprintable() for name in names):
            return holder, written
    return None, written


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.lstat(path))
    except FileNotFoundError:
        return False


def _same_machine(one: Holder, other: Holder) -> bool:
    return one.host == other.host or (one.boot != "" and one.boot == other.boot)


def _earlier_attempt(one: Holder, now: Holder) -> bool:
    """Whether it is of the job that we are of, and of another start of it."""
    return now.job != "" and one.job == now.job and one.attempt != now.attempt


def _alive(pid: int) -> bool:
    """Whether there is a process of this number, perhaps another by now; yes, where that cannot be asked."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _set_aside(path: Path, written: bytes) -> None:
    """Removes a dead lock without `flock`; one that somebody else has taken over meanwhile is put back."""
    aside = path.with_name(f"{FILE}.{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        path.rename(aside)
        if aside.read_bytes() != written:
            with suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _let_go_in_fork() -> None:
    """A fork shares the locks of its parent, and would keep them when the parent is dead."""
    for file in _held:
        with suppress(OSError):
            os.close(file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_in_fork)

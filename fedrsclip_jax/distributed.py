"""Several processes as one program, usually one a host: how they find each other, what they have to agree on.

Every process does the same work on the host, holds its own devices of the mesh, and meets the others in collectives
alone. So whatever decides which program runs next has to be the same everywhere: what only one process can know
(its clock, its disk, an error) goes through `exchange` or `together`. The first process alone prints and writes.

The environment says how processes find each other; without `FEDRSCLIP_PROCESSES` there is one:
  FEDRSCLIP_PROCESSES    how many, or `auto`, which leaves all three to JAX (Slurm, TPU pods, GKE, Open MPI)
  FEDRSCLIP_PROCESS      number of this one, from 0
  FEDRSCLIP_COORDINATOR  HOST:PORT of the first, with a port that is free there

This module imports no JAX where there is one process, so that a mistyped flag is answered at once.
"""

import json
import os
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from fedrsclip_jax.errors import InputError

T = TypeVar("T")

PROCESSES, PROCESS, COORDINATOR = "FEDRSCLIP_PROCESSES", "FEDRSCLIP_PROCESS", "FEDRSCLIP_COORDINATOR"

_LETTER = 4096  # bytes of what a process tells the others at a time
_MESSAGE = _LETTER // 8  # characters of an error in it; JSON takes at most six bytes for one
_FAREWELL = 10  # seconds that a process waits for the others at its end, where it came out of step with them


def plan(environment: Mapping[str, str]) -> dict[str, Any] | None:
    """Arguments of `jax.distributed.initialize`, or None where one process is all there is.

    Raises:
      InputError: a variable is missing or makes no sense.
    """
    written = environment.get(PROCESSES, "")
    if written == "auto":
        # Slurm's tasks are taken for one a device; one a host has to be told of all its devices.
        if environment.get("SLURM_NTASKS_PER_NODE") == "1" and "SLURM_GPUS_ON_NODE" in environment:
            return {"local_device_ids": list(range(int(environment["SLURM_GPUS_ON_NODE"])))}
        return {}
    if _alone(environment):
        return None
    processes = _number(PROCESSES, written, 1, None)
    process = _number(PROCESS, environment.get(PROCESS, ""), 0, processes - 1)
    address = environment.get(COORDINATOR, "")
    host, _, port = address.rpartition(":")
    if not (host and port.isdecimal()):
        raise InputError(f"{COORDINATOR} = {address!r} is no HOST:PORT of the first process, such as node001:8476")
    found: dict[str, Any] = {
        "coordinator_address": address,
        "num_processes": processes,
        "process_id": process,
        "cluster_detection_method": "deactivate",
    }
    if host in ("localhost", "127.0.0.1"):
        found["coordinator_bind_address"] = address  # or the service would listen to the network
    return found


def start() -> None:
    """Meets the other processes, if there are any; before anything else that asks JAX for devices.

    Raises:
      InputError: the environment makes no sense, or the others do not come.
    """
    arguments = plan(os.environ)
    if arguments is None:
        return
    import jax

    if jax.distributed.is_initialized():
        return
    _keep_stdout_for_results()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would catch SIGTERM, which is ours to answer.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, shutdown_timeout_seconds=_FAREWELL)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{PROCESSES} = {os.environ[PROCESSES]}: the processes do not meet ({reason})") from error
    if not first():
        import logging

        logging.getLogger("fedrsclip_jax").setLevel(logging.ERROR)


def refuse(verb: str) -> None:
    """For verbs that are one process's work.

    Raises:
      InputError: there are several.
    """
    if not _alone():
        raise InputError(f"{verb} is the work of one process; unset {PROCESSES} (it is {os.environ[PROCESSES]})")


def first() -> bool:
    """Whether this process prints and writes."""
    if _alone():
        return True
    import jax

    if jax.distributed.is_initialized():
        return jax.process_index() == 0
    # Too early to ask JAX.
    return (os.environ.get(PROCESS) or os.environ.get("SLURM_PROCID") or "0") == "0"


def exchange(value: Any) -> list[Any]:
    """What every process says, by process; all have to ask, and none goes on before all have.

    Args:
      value: anything that JSON holds, up to 4 KB.
    """
    if not _several():
        return [value]
    import numpy as np
    from jax.experimental.multihost_utils import process_allgather

    letters = process_allgather(np.frombuffer(_letter(value), np.uint8))
    return [json.loads(letter.tobytes()) for letter in np.asarray(letters)]


def _letter(value: Any) -> bytes:
    """`value` as JSON, filled up with blanks to `_LETTER` bytes."""
    # A character takes up to four bytes like this, and up to twelve if it were escaped. Names of files may hold bytes
    # that are no characters, which Python keeps as lone surrogates.
    written = json.dumps(value, ensure_ascii=False).encode(errors="surrogatepass")
    if len(written) > _LETTER:
        raise ValueError(f"{len(written)} bytes are too much to exchange; at most {_LETTER}")
    return written.ljust(_LETTER)


@contextmanager
def together() -> Iterator[None]:
    """A body without collectives that every process gets through, or none.

    Raises:
      InputError: on all processes, what the first of those that failed raised.
      SystemExit: where another process failed for some other reason, which stands in its own output.
    """
    if not _several():
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    bad = isinstance(failure, InputError)
    verdicts = exchange([failure is not None, bad and " ".join(str(failure).splitlines())[:_MESSAGE]])
    if failure is not None and not bad:
        raise failure
    for process, (failed, message) in enumerate(verdicts):
        if failed and not message:
            raise SystemExit(1)
        if failed:
            where = "" if all(m == message for _, m in verdicts) or process == 0 else f" (process {process})"
            raise InputError(f"{message}{where}") from failure


def in_turn(folder: Path, work: Callable[[], T]) -> T:
    """What `work`, which has no collectives, gives on every process.

    Where processes have `folder` in common, on one host or by a shared file system, the others begin when the first is
    done, and find what it has left there.
    """
    result: Any = None
    behind = _several() and _behind_first(folder)
    for turn in (False, True):
        with together():
            if behind is turn:
                result = work()
    return result


def check_same(said: Mapping[str, str]) -> None:
    """Refuses processes that do not work on the same.

    Args:
      said: digests by what they are of.

    Raises:
      InputError: one differs from the first process's.
    """
    for process, theirs in enumerate(everyone := exchange(dict(said))):
        for what, digest in theirs.items():
            if digest != everyone[0][what]:
                raise InputError(f"process {process} has another {what} than the first; give all hosts the same")


def _behind_first(folder: Path) -> bool:
    mark = folder / exchange(f".{uuid.uuid4().hex}" if first() else None)[0]
    if first():
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
    exchange("it is there")
    found = mark.exists()
    exchange("all have looked")
    if first():
        mark.unlink(missing_ok=True)
    return found and not first()


def _several() -> bool:
    """Whether there are other processes, and they have met."""
    if _alone():
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _alone(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether nobody has said that there are other processes."""
    return environment.get(PROCESSES, "") in ("", "1")


def _number(name: str, written: str, low: int, high: int | None) -> int:
    try:
        number = int(written)
    except ValueError:
        number = low - 1
    if number < low or (high is not None and number > high):
        among = f"a number from {low}" + (f" to {high}" if high is not None else "")
        raise InputError(f"{name} = {written!r} is not {among}")
    return number


def _keep_stdout_for_results() -> None:
    """Gloo prints on standard output whom it has met; what Python prints goes there still, and nothing else."""
    sys.stdout.flush()
    kept = os.dup(1)
    sys.stdout = open(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

"""Several processes as one program, usually one a host: how they find each other, what they have to agree on.

Every process does the same work on the host, holds its own devices of the mesh, and meets the others in collectives
alone. So whatever decides which program runs next has to be the same everywhere: what only one process can know
(its clock, its disk, an error) goes through `exchange` or `together`. The first process alone prints and writes.

How processes find each other is `rendezvous`; who of them dies is seen by `peers`.

This module imports no JAX where there is one process, so that a mistyped flag is answered at once.
"""

import json
import os
import platform
import sys
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from fedrsclip_jax import peers, rendezvous
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.interrupt import Stopped
from fedrsclip_jax.rendezvous import PROCESS, PROCESSES

T = TypeVar("T")

_LETTER = 4096  # bytes of what a process tells the others at a time
_MESSAGE = _LETTER // 8  # characters of an error in it; JSON takes at most six bytes for one


def start() -> None:
    """Meets the other processes, if there are any; before anything else that asks JAX for devices.

    Raises:
      InputError: the environment makes no sense, or the others do not come.
    """
    arguments, seconds = rendezvous.plan(os.environ), rendezvous.patience(os.environ)
    if arguments is None:
        return
    rendezvous.bypass_proxy(os.environ, arguments.get("coordinator_address", ""))
    import jax

    if jax.distributed.is_initialized():
        return
    _keep_stdout_for_results()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would catch SIGTERM, which is ours to answer.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        rendezvous.meet(arguments, seconds)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{PROCESSES} = {os.environ[PROCESSES]}: the processes do not meet ({reason})") from error
    me, others = jax.process_index(), jax.process_count() - 1
    host = arguments.get("coordinator_address", "").rpartition(":")[0] or exchange(platform.node())[0]
    if others:
        peers.watch(me, others, host, exchange)
    if not first():
        import logging

        logging.getLogger("fedrsclip_jax").setLevel(logging.ERROR)


def refuse(verb: str) -> None:
    """For verbs that are one process's work.

    Raises:
      InputError: there are several.
    """
    if not rendezvous.alone():
        raise InputError(f"{verb} is the work of one process; unset {PROCESSES} (it is {os.environ[PROCESSES]})")


def first() -> bool:
    """Whether this process prints and writes."""
    if rendezvous.alone():
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


def mourn() -> None:
    """After an error in a collective: ends this process in one line if another one has died, else returns."""
    if _several():
        peers.mourn()


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


def in_turn(
    folder: Path,
    work: Callable[[Callable[[], None]], T],
    asked: Callable[[], int] = lambda: 0,
    leave: Callable[[int], NoReturn] | None = None,
) -> T:
    """What `work`, which has no collectives, gives on every process.

    Where processes have `folder` in common, on one host or by a shared file system, the others begin when the first is
    done, and find what it has left there.

    Args:
      work: is given a function to call between its steps, as often as it likes. There processes agree whether to leave,
        those that wait for their turn among them.
      asked: the exit code with which this process has been asked to leave, or 0.
      leave: is then called on all processes with the exit code, and raises.

    Raises:
      InputError, SystemExit: as `together`.
    """

    def agree(working: bool) -> bool:
        """Whether anybody is still at work."""
        said = exchange([working, asked()])
        if leave is not None and (code := max(code for _, code in said)):
            leave(code)
        return any(busy for busy, _ in said)

    def step() -> None:
        agree(True)

    result: Any = None
    behind = _several() and _behind_first(folder)
    for turn in (False, True) if _several() else (False,):
        failure: Exception | None = None
        if behind is turn:
            try:
                result = work(step)
            except Stopped:
                raise
            except Exception as error:
                failure = error
        while agree(False):
            pass
        with together():
            if failure is not None:
                raise failure
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


def check_seen(folder: Path, marks: Iterable[str]) -> None:
    """Refuses a folder that the first process alone sees as it was left, where a run is to go on in it.

    Args:
      marks: names of files in it, all of which every process has to see that the first sees.

    Raises:
      InputError: one process sees another folder.
    """
    seen = exchange([mark for mark in marks if (folder / mark).exists()])
    for process, theirs in enumerate(seen):
        if missing := [mark for mark in seen[0] if mark not in theirs]:
            raise InputError(
                f"--workdir: {folder} holds a run where the first process is, and process {process} does not see its "
                f"{missing[0]}; give a --workdir that all hosts have in common, such as a mounted bucket, or copy the "
                "folder from the first host to the others"
            )


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
    if rendezvous.alone():
        return False
    import jax

    return jax.distributed.is_initialized() and jax.process_count() > 1


def _keep_stdout_for_results() -> None:
    """Gloo prints on standard output whom it has met; what Python prints goes there still, and nothing else."""
    sys.stdout.flush()
    kept = os.dup(1)
    sys.stdout = open(kept, "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors, buffering=1)  # noqa: SIM115
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.close(nowhere)

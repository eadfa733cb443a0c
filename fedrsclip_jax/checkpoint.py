"""Runs saved by Orbax: the server's state, the private prompts of every client that took part, and a record of the run.

A checkpoint appears under its final name in one step, so that a process that is killed leaves none that is half
written. What lies on disk may be damaged later all the same: each carries the sha256 of what it holds, and one that
does not read as it was written is passed over for the newest that does.
"""

import errno
import functools
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from fedrsclip_jax import __version__, distributed, formats
from fedrsclip_jax.errors import DISK_REFUSALS, InputError
from fedrsclip_jax.federated.aggregate import Server
from fedrsclip_jax.federated.population import Population

FOLDER, BEST, DAMAGED = "checkpoints", "best", "damaged"
# What a system answers whose fault it is, and not the checkpoint's.
_PASSING = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ETIMEDOUT,
}
_STATE, _RECORD = "state", "record"
_log = logging.getLogger(__name__)


class Saved(NamedTuple):
    """A checkpoint that has been read.

    Attributes:
      round: after which it was written.
      shared, optimizer: leaves of the server's state, in the order of its tree.
      population: as `Population.state()` gave it.
      record: what else was saved, as JSON holds it, in the present format.
    """

    round: int
    shared: list[np.ndarray]
    optimizer: list[np.ndarray]
    population: dict[str, Any]
    record: formats.Record

    def server(self, like: Server) -> Server:
        """The server's state, on the host, in the structure of one like it.

        Raises:
          InputError: it is of another structure.
        """
        made = []
        for tree, leaves in zip(like, (self.shared, self.optimizer), strict=True):
            check_fits(jax.tree.leaves(tree), leaves)
            made.append(jax.tree.unflatten(jax.tree.structure(tree), leaves))
        return Server(*made)


class Checkpoints:
    """The checkpoints in one folder; a context manager, on leaving which everything is on disk.

    Args:
      workdir: of the run.
      keep: how many are kept, the newest; None keeps all until `delete_but`.
      folder: of `workdir`: `FOLDER`, or `BEST` for the one that scored best.
    """

    def __init__(self, workdir: Path, keep: int | None = 1, folder: str = FOLDER):
        self.folder, self._keep = (workdir / folder).absolute(), keep
        self._owned = False  # or what another process is just saving would be cleared away

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: Any, *_) -> None:
        if "_manager" in self.__dict__:
            try:
                self.wait()
            except InputError:
                if kind is None:  # else what ended the body is the first cause, and is not to be covered
                    raise
            finally:
                self._manager.close()

    @functools.cached_property
    def _manager(self) -> ocp.CheckpointManager:
        # Every process has all that is saved, on its host. So Orbax is told of one process and waits for no other: the
        # first writes, and whoever sees the folder reads.
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=self._keep,
            create=False,
            cleanup_tmp_directories=self._owned,
            multiprocessing_options=alone,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def rounds(self) -> list[int]:
        """After which rounds there is a checkpoint, ascending; damaged ones count.

        Raises:
          InputError: a file stands in the folder's place.
        """
        if not self.folder.is_dir():
            if self.folder.exists():
                raise InputError(f"{self.folder} is a file, and checkpoints are to go there; move it away")
            return []
        self._manager.reload()  # after a save that failed it does not know any more what it has
        return sorted(self._manager.all_steps())

    def save(self, number: int, server: Server, population: Population, record: dict[str, Any] | None = None) -> None:
        """Saves the state after round `number`, unless that is there; returns before it is on disk.

        Raises:
          InputError: it cannot be written, or the one before could not.
        """
        if not distributed.first() or number in self._manager.all_steps():
            return
        kept = population.state()
        trees = {"shared": server.shared, "optimizer": server.optimizer, "private": list(kept["leaves"].values())}
        state = {"drawn": np.asarray(len(kept["ids"])), "ids": kept["ids"]}
        # By number: Orbax then needs to know no class of ours. Copies, since what they are of may be donated to the
        # next round while they are being written.
        for what, tree in trees.items():
            state |= {f"{what}.{i:03d}": np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
        state = {name: leaf for name, leaf in state.items() if leaf.size}  # Orbax knows no empty ones
        stamped = formats.stamp(record or {})
        written = {"sha256": _digest(state, stamped), "record": stamped}
        with self._writing():
            self._manager.save(
                number,
                args=ocp.args.Composite(**{_STATE: ocp.args.StandardSave(state), _RECORD: ocp.args.JsonSave(written)}),
            )

    def wait(self) -> None:
        """Until all that was saved is on disk.

        Raises:
          InputError: it cannot be written.
        """
        if "_manager" in self.__dict__:
            with self._writing():
                self._manager.wait_until_finished()

    def restore(self, which: str = "last") -> Saved:
        """A checkpoint.

        Args:
          which: `last`, which is the newest sound one, or a round.

        Raises:
          InputError: there is no such checkpoint, no sound one, or one of a newer format.
        """
        kept = self.rounds()
        if not kept:
            raise InputError(f"{self.folder} holds no checkpoint; give the --workdir of a run that has saved one")
        if which != "last":
            if not (which.isdecimal() and int(which) in kept):
                raise InputError(
                    f"--checkpoint={which}: {self.folder} holds none of round {which}; kept are "
                    f"{', '.join(map(str, kept))}"
                )
            kept = [int(which)]
        reasons: list[str] = []
        for number in reversed(kept):
            try:
                return self._read(number)
            except _Damaged as damaged:
                reasons.append(str(damaged))
                _log.warning("%s", damaged)
        raise InputError(
            f"{self.folder}: no checkpoint can be read, of {', '.join(map(str, kept))} ({reasons[0]}); the run was "
            f"written by fedrsclip_jax {formats.version_of(self.folder.parent)}, and this is {__version__}: use that "
            "version if they differ, copy the folder again from where the run was trained, or name a new --workdir"
        )

    def newest(self) -> Saved | None:
        """The newest sound checkpoint; None where none was saved. Nothing is changed.

        Raises:
          InputError: there are checkpoints, and none of them can be read, or one is of a newer format.
        """
        self._owned = distributed.first()
        return self.restore() if self.rounds() else None

    def go_on_after(self, number: int) -> None:
        """Makes way for the rounds after `number`: what was saved after it is set aside, as it is damaged."""
        if not distributed.first():
            return
        self._owned = True
        for later in [later for later in self.rounds() if later > number]:
            aside = self.folder.with_name(DAMAGED) / f"{self.folder.name}-{later}"
            with self._writing():
                aside.parent.mkdir(exist_ok=True)
                shutil.rmtree(aside, ignore_errors=True)
                (self.folder / str(later)).rename(aside)
            _log.warning("checkpoint %d was moved to %s", later, aside)
            self._manager.reload()

    def delete_but(self, number: int | None) -> None:
        """Deletes all but the one of a round."""
        if not distributed.first():
            return
        self._owned = True
        for other in self.rounds():
            if other != number:
                self._manager.delete(other)

    def _read(self, number: int) -> Saved:
        try:
            found: Any = self._manager.restore(
                number,
                args=ocp.args.Composite(**{_STATE: ocp.args.StandardRestore(), _RECORD: ocp.args.JsonRestore()}),
            )
            state, written = found[_STATE], found[_RECORD]
            # Before all else: what a newer version writes is not damaged where it is not understood.
            record = formats.upgrade("checkpoint", written["record"], f"checkpoint {number} in {self.folder}")
            sound = _is_sound(state, written)
        except (MemoryError, InputError):
            raise
        except Exception as error:  # whatever a library makes of files that are cut off or gone
            if isinstance(error, OSError) and error.errno in _PASSING:
                raise InputError(
                    f"checkpoint {number} in {self.folder} cannot be read now ({error.strerror}); mend that, and run "
                    "the same command again: nothing is lost"
                ) from error
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise _Damaged(f"checkpoint {number} in {self.folder} cannot be read ({reason})") from error
        if not sound:
            raise _Damaged(f"checkpoint {number} in {self.folder} does not hold what was saved")
        shared, optimizer, private = (_under(what, state) for what in ("shared", "optimizer", "private"))
        kept = {"ids": state.get("ids", np.zeros(0, np.int64)), "leaves": private}
        return Saved(number, list(shared.values()), list(optimizer.values()), kept, record)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """What a disk refuses is said in a line; Orbax may wrap it into errors of several kinds."""
        try:
            yield
        except (OSError, ValueError, RuntimeError) as error:
            said = str(error)
            reason = next((words for words in map(os.strerror, DISK_REFUSALS) if words in said), None)
            if reason is None:
                raise
            free = ""
            if self.folder.is_dir():
                free = f", {shutil.disk_usage(self.folder).free / 2**20:,.1f} MiB are free"
            raise InputError(
                f"{self.folder}: a checkpoint cannot be written ({reason}{free}); make room, and the same command "
                "goes on from the last one that could"
            ) from error


def check_fits(expected: Sequence[Any], saved: Sequence[Any]) -> None:
    """Refuses saved arrays that are not like those of the present run.

    Raises:
      InputError: their number, a shape or a type differs.
    """
    ours, theirs = ([(np.shape(leaf), str(leaf.dtype)) for leaf in leaves] for leaves in (expected, saved))
    if ours != theirs:
        raise InputError(
            f"the checkpoint holds arrays {theirs or 'of nothing'} where this run has {ours or 'none'}; what changes "
            "them cannot be changed within a run: start a new one in another folder, with init_from=run:FOLDER"
        )


class _Damaged(Exception):
    """A checkpoint that does not read as it was written; the text says which and why."""


def _under(what: str, state: dict[str, Any]) -> dict[str, np.ndarray]:
    """The leaves of one part, by number."""
    names = sorted(name for name in state if name.startswith(f"{what}."))
    return {str(i): np.asarray(state[name]) for i, name in enumerate(names)}


def _is_sound(state: dict[str, Any], written: dict[str, Any]) -> bool:
    """Whether a checkpoint holds what was saved; the first of those without a format number left the record out."""
    record, sha256 = written["record"], written["sha256"]
    return _digest(state, record) == sha256 or ("format" not in record and _digest(state, None) == sha256)


def _digest(state: dict[str, Any], record: dict[str, Any] | None) -> str:
    """sha256 of all arrays with their names, types and shapes, and of the record as JSON."""
    sha = hashlib.sha256(b"" if record is None else json.dumps(record, sort_keys=True).encode())
    for name in sorted(state):
        array = np.ascontiguousarray(state[name])
        sha.update(f"{name} {array.dtype} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()

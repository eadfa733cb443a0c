"""What stays on this machine's disk between runs, beside the runs themselves: image features and compiled programs.

Both lie in `$FEDRSCLIP_CACHE`, or `~/.cache/fedrsclip`, and can be made again: a feature by the image tower, a program
by the compiler.
"""

import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from fedrsclip_jax.data.features import lock_of
from fedrsclip_jax.lock import turn
from fedrsclip_jax.processor import PROGRAMS, processor
from fedrsclip_jax.report.terminal import print_table

DAYS = 30.0  # after which an entry that nobody has used is trimmed, where the user does not say
FEATURES, UNFINISHED = "features", "features, unfinished"
_OF_ANY = "programs of older versions, of any processor"
_ENTRY = re.compile(r"[0-9a-f]{64}(\.partial)?")
_DAY = 86_400.0


@dataclass(frozen=True)
class Entry:
    """Something in a cache that can be deleted by itself.

    Attributes:
      group: of what kind it is, for people.
      path: a folder of features, or the file of a program.
      bytes: on disk.
      used: when it was last read or written, in seconds since 1970; as far as the file system notes that.
    """

    group: str
    path: Path
    bytes: int
    used: float

    @property
    def useless(self) -> bool:
        """Whether nothing reads it any more."""
        return self.group == _OF_ANY


def entries(folder: Path) -> list[Entry]:
    """All that both caches hold, the least recently used first; nothing where there is no such folder."""
    found = []
    for path in _children(folder):
        if _ENTRY.fullmatch(path.name) and path.is_dir():
            found.append(_entry(UNFINISHED if path.suffix else FEATURES, path))
    for path in _children(folder / PROGRAMS):
        if path.is_dir():
            found += [_entry(f"programs of {path.name}", program) for program in _children(path)]
        else:
            found.append(_entry(_OF_ANY, path))
    return sorted(found, key=lambda entry: (entry.used, entry.path))


def trim(folder: Path, days: float = DAYS, most: float | None = None) -> list[Entry]:
    """Deletes what nobody has used for so many days, and what nothing reads any more.

    Args:
      most: bytes that may stay; of more, the least recently used go as well.

    Returns:
      What was deleted. Features that a process is just encoding stay.
    """
    now, there = time.time(), entries(folder)
    left, gone = sum(entry.bytes for entry in there), []
    for entry in there:
        old = now - entry.used > days * _DAY
        too_much = most is not None and left > most
        if (old or too_much or entry.useless) and _delete(entry):
            gone.append(entry)
            left -= entry.bytes
    for lock in folder.glob("*.lock"):  # older versions left one of each entry
        with turn(lock, None):
            pass
    for path in _children(folder / PROGRAMS):
        with suppress(OSError):  # a file, or not empty
            path.rmdir()
    return gone


def show(there: Sequence[Entry], folder: Path, console: Console) -> None:
    """A table of what the caches hold, by kind."""
    table = Table(title=f"caches in {folder}", title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("", "entries", "size", "last used", "oldest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for group in dict.fromkeys(sorted(entry.group for entry in there)):
        own = [entry for entry in there if entry.group == group]
        name = f"{group} (this one)" if group == f"programs of {processor()}" else group
        size, ages = sum(entry.bytes for entry in own), [_age(entry) for entry in (own[-1], own[0])]
        table.add_row(name, f"{len(own):,}", said_size(size), *ages)
    print_table(table, console)


def said_size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _age(entry: Entry) -> str:
    days = max(time.time() - entry.used, 0.0) / _DAY
    return f"{days:.0f} days ago" if days >= 1.5 else "a day ago" if days >= 1 else "today"


def _children(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(folder.iterdir())


def _entry(group: str, path: Path) -> Entry:
    size, used = 0, 0.0
    for file in (path, *path.rglob("*")) if path.is_dir() else (path,):
        with suppress(FileNotFoundError):  # another process has just published or deleted it
            stat = file.stat()
            if not file.is_dir():  # reading a folder's names, as this does, is no use of it
                size += stat.st_blocks * 512 if hasattr(stat, "st_blocks") else stat.st_size
                used = max(used, stat.st_mtime, stat.st_atime)
    return Entry(group, path, size, used)


def _delete(entry: Entry) -> bool:
    if entry.path.is_dir():
        with turn(lock_of(entry.path.with_suffix("")), None) as ours:
            if ours:
                shutil.rmtree(entry.path)
            return ours
    with suppress(FileNotFoundError):
        os.unlink(entry.path)
    return True

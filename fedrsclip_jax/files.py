"""Small files written so that nobody ever finds half of one; of several processes, the first writes them."""

import json
import os
from pathlib import Path
from typing import Any

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError


def check_new(workdir: Path) -> None:
    """Refuses a folder for results in which something lies already, and one that cannot be made."""
    if not distributed.first():
        return
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise InputError(f"--workdir: {workdir} is not an empty folder; name a new one, so that no run is overwritten")
    check_can_be_made(workdir)


def check_can_be_made(folder: Path, flag: str = "--workdir") -> None:
    """Refuses a folder that cannot be made or written to; `flag` is what named it."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK)):
        what = "cannot be written to" if nearest.is_dir() else "is not a folder"
        raise InputError(f"{flag}: {folder} cannot be made, as {nearest} {what}; name a folder elsewhere")


def make_folder(folder: Path, flag: str = "--workdir") -> None:
    """Makes a folder for results, and those above it."""
    if not distributed.first():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: {folder} cannot be made ({error.strerror}); name a folder elsewhere") from error


def read_json(path: Path) -> Any:
    """What a file of a run's folder holds.

    Raises:
      InputError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"--workdir: {path} is not JSON ({error}); give the folder of a sound run") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Writes beside `path`, then renames: readers see the old file or the new one."""
    if not distributed.first():
        return
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")

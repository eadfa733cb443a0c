"""Small files written so that nobody ever finds half of one; of several processes, the first writes them."""

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError

PARTIAL = ".partial."  # how files begin that are not written yet; a kill leaves them behind
_UMASK = os.umask(0o22)
os.umask(_UMASK)


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


def read_json(path: Path) -> dict[str, Any]:
    """What a file of a run's folder holds.

    Raises:
      InputError: it cannot be read, or is no JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); give the folder of a run") from error
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); give the folder of a sound run") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds no keys; give the folder of a sound run")
    return found


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes a file in one step: readers see the old one or the new one, after a power cut too.

    Args:
      write: writes the content; interrupted, it leaves nothing.
    """
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f"{PARTIAL}{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(partial, 0o666 & ~_UMASK)  # temporary files are readable for their owner alone
        os.replace(partial, path)
    except BaseException:
        Path(partial).unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    if distributed.first():
        replace(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")

"""The folder that an export fills: all of it or nothing, and never over somebody's files."""

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrsclip_jax.errors import InputError
from fedrsclip_jax.export import certificate
from fedrsclip_jax.files import check_can_be_made, make_folder


class Output:
    """A folder to be written.

    Raises:
      InputError: it is no folder, or not empty; with `overwrite`, if something else than an export lies in it.
    """

    def __init__(self, folder: Path, overwrite: bool):
        self.folder = folder
        check_can_be_made(folder, "--output")
        there = {path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
        if there and not overwrite:
            raise InputError(f"--output: {folder} is not empty; name a new folder, or replace an export by --overwrite")
        foreign = sorted(path for path in there - _exported(folder) if path.parent.name != "__pycache__")
        if foreign:
            raise InputError(
                f"--output: {foreign[0]} was not written by an export, and --overwrite replaces exports alone; name a "
                "new folder"
            )
        self._old = there

    @contextmanager
    def staged(self) -> Iterator[Path]:
        """An empty folder inside the output, of which all moves up if the body of the `with` succeeds."""
        new = not self.folder.exists()
        make_folder(self.folder, "--output")
        stage = Path(tempfile.mkdtemp(prefix=".export-", dir=self.folder))
        try:
            yield stage
            self._clear()
            for path in stage.iterdir():
                path.rename(self.folder / path.name)
            stage.rmdir()
        except BaseException:
            shutil.rmtree(self.folder if new else stage)
            raise

    def _clear(self) -> None:
        """Removes the files of the earlier export, and the folders that are empty then."""
        for path in self._old:
            path.unlink()
        for parent in sorted({parent for path in self._old for parent in path.parents}, reverse=True):
            if self.folder in parent.parents and not any(parent.iterdir()):
                parent.rmdir()


def _exported(folder: Path) -> set[Path]:
    """The files that certificates in a folder list, and these themselves."""
    found = set()
    for path in (folder / certificate.FILE, *folder.glob(f"client_*/{certificate.FILE}")):
        try:
            listed = json.loads(path.read_text(encoding="utf-8"))["files"]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found |= {path, *(path.parent / name for name in listed)}
    return found

"""A folder of class folders as a source of images."""

import hashlib
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data.decoding import EXTENSIONS, decode, unreadable
from fedrsclip_jax.data.names import class_names
from fedrsclip_jax.errors import InputError


class Folder:
    """A folder with one folder of jpg, png or tif images per class, directly in it or nested deeper.

    Hidden files and folders are ignored. Class names are made readable from the folders' names, or taken from
    `classnames.txt` beside them: on each line a folder, then a tab, `=` or space, then its name.

    Raises:
        InputError: no such folder, no class folders, fewer than two classes, a class with fewer than two
            images, two classes of one readable name, or a bad line in `classnames.txt`.
    """

    def __init__(self, path: str | Path):
        root = Path(path).expanduser()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise InputError(f"data.source=folder:{path} {what}; give a folder of class folders")
        folders = sorted((p for p in root.iterdir() if p.is_dir() and not _hidden(p.name)), key=_natural)
        if not folders:
            raise InputError(f"folder {path} has no class folders; put each class's images into a folder")
        files = [images_below(folder) for folder in folders]
        if not any(files):
            raise InputError(f"folder {path} has no images below its {len(folders)} folders; {_formats()}")
        if len(folders) < 2:
            raise InputError(
                f"folder {path} has one class folder, {folders[0].name!r}, and needs at least two; "
                f"are they one level deeper, in {Path(path) / folders[0].name}?"
            )
        for folder, members in zip(folders, files, strict=True):
            if len(members) < 2:
                raise InputError(
                    f"class {folder.name!r} in {path} has {len(members)} image(s) and needs two, to train "
                    f"and to test; add images ({_formats()}) or move the folder away"
                )
        self.class_names = class_names(root, [folder.name for folder in folders])
        self.domain_names = ("all",)
        self.labels = np.repeat(np.arange(len(folders)), [len(m) for m in files]).astype(np.int32)
        self.domains = np.zeros(len(self.labels), np.int32)
        self._files = [path for members in files for path in members]
        self._digests: list[str] | None = None

    def __len__(self) -> int:
        return len(self._files)

    @property
    def digests(self) -> list[str]:
        """sha256 of each file's bytes; read when first asked for."""
        if self._digests is None:
            with ThreadPoolExecutor(8) as pool:  # hashing and reading both release the interpreter lock
                self._digests = list(pool.map(_file_digest, self._files))
        return self._digests

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        path = self._files[i]
        try:
            return decode(path.read_bytes())
        except (OSError, ValueError) as error:
            raise unreadable(str(path), error) from error

    def name(self, i: int) -> str:
        return str(self._files[i])


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and those below it, in natural order; hidden ones are ignored."""
    found = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    return sorted((p for p in found if not any(map(_hidden, p.relative_to(folder).parts))), key=_natural)


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _natural(path: Path) -> tuple:
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(p), "") if p.isdecimal() else (-1, p.lower()) for p in parts], path.as_posix()


def _formats() -> str:
    return "images are " + ", ".join(extension.lstrip(".") for extension in EXTENSIONS)


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # named when the image itself is asked for, which may be skipped
        return hashlib.sha256(f"unreadable {path}".encode()).hexdigest()

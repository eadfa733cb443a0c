"""A folder of class folders as a source of images."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from fedrsclip_jax.data import bands
from fedrsclip_jax.data.decoding import EXTENSIONS, decode, unreadable
from fedrsclip_jax.data.layout import Place, files_below, is_image, kinds, read_layout
from fedrsclip_jax.data.names import CLASS_NAMES_FILE, class_names
from fedrsclip_jax.errors import InputError


class Folder:
    """A folder with one folder of images per class, directly in it or nested deeper; see `layout` for what else.

    Hidden files and folders are ignored. Class names are made readable from the folders' names, or taken from
    `classnames.txt` beside them: on each line a folder, then a tab, `=` or space, then its name.

    Attributes:
        sides: of the split that the folders are, positions in `layout.SIDES`; None where they are none.
        remarks: sentences on what a person should know: layout, files that are left out, the order of bands.
        Others: see `ImageSource`.
    """

    def __init__(self, path: str | Path, layout: str = "auto"):
        """
        Args:
            layout: see `read_layout`.

        Raises:
            InputError: no such folder, no class folders, fewer than two classes, a class with fewer than two
                images, two classes of one readable name, or a bad line in `classnames.txt`.
        """
        root = Path(path).expanduser()
        if not root.is_dir():
            what = "is a file" if root.exists() else "does not exist"
            raise InputError(f"data.source=folder:{path} {what}; give a folder of class folders")
        places, remarks = read_layout(root, layout)
        names = list(dict.fromkeys(place.class_folder for place in places))
        below = [files_below(place.folder) for place in places]
        files = [[file for file in of_place if is_image(file)] for of_place in below]
        left_out = [file for of_place in below for file in of_place if not is_image(file)]
        images = dict.fromkeys(names, 0)
        for place, of_place in zip(places, files, strict=True):
            images[place.class_folder] += len(of_place)
        _check(Path(path), images, left_out)
        self.class_names = class_names(_holder_of_names(root, places), names)
        counts = [len(of_place) for of_place in files]
        number = {name: label for label, name in enumerate(names)}
        self.labels = np.repeat([number[place.class_folder] for place in places], counts).astype(np.int32)
        domains = sorted({place.domain for place in places if place.domain is not None})
        self.domain_names = tuple(domains) or ("all",)
        of_places = [domains.index(place.domain) if place.domain is not None else 0 for place in places]
        self.domains = np.repeat(of_places, counts).astype(np.int32)
        sides = [place.side for place in places]
        self.sides = None if None in sides else np.repeat(np.array(sides, np.int8), counts)
        self.remarks = [*remarks, *_left_out(root, left_out), *_order_of_bands(files)]
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


def _check(path: Path, images: dict[str, int], left_out: list[Path]) -> None:
    """Refuses classes with too few images, and says what was left out."""
    others = f" ({kinds(left_out)} in all are left out)" if left_out else ""
    if not any(images.values()):
        raise InputError(f"folder {path} has no images below its {len(images)} folders{others}; {_formats()}")
    if len(images) < 2:
        name = next(iter(images))
        raise InputError(
            f"folder {path} has one class folder, {name!r}, and needs at least two; "
            f"are they one level deeper, in {path / name}?"
        )
    for name, count in images.items():
        if count < 2:
            raise InputError(
                f"class {name!r} in {path} has {count} image(s){others} and needs two, to train "
                f"and to test; add images ({_formats()}) or move the folder away"
            )


def _holder_of_names(root: Path, places: list[Place]) -> Path:
    """Where `classnames.txt` is: in the folder itself, or beside the first class folders that have one."""
    beside = (place.folder.parent for place in places)
    return next((folder for folder in (root, *beside) if (folder / CLASS_NAMES_FILE).is_file()), root)


def _left_out(root: Path, below: list[Path]) -> list[str]:
    """Files that are no images to us, and images that are in no class folder."""
    remarks = []
    if below:
        remarks.append(f"{root}: left out are {kinds(below)}, as {_formats()}")
    loose = [file for file in root.iterdir() if is_image(file) and file.is_file() and not file.name.startswith(".")]
    if len(loose) == 1:
        remarks.append(f"{root}: left out is {loose[0].name}, an image that is in no class folder")
    elif loose:
        remarks.append(f"{root}: left out are {len(loose)} images that are in no class folder, such as {loose[0].name}")
    return remarks


def _order_of_bands(files: list[list[Path]]) -> list[str]:
    """What is taken for red, green and blue, where TIFFs do not say; asked of the first one in each folder."""
    for of_place in files:
        raster = next((file for file in of_place if file.suffix.lower() in bands.RASTERS), None)
        if raster is not None and (order := bands.guessed(raster)):
            return [f"bands of {raster} have no names; {order}"]
    return []


def _formats() -> str:
    return "images are " + ", ".join(extension.lstrip(".") for extension in EXTENSIONS)


def _file_digest(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:  # named when the image itself is asked for, which may be skipped
        return hashlib.sha256(f"unreadable {path}".encode()).hexdigest()

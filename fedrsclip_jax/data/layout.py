"""How a folder of images is laid out: a folder a class, and above these folders of a split or of domains.

Recognised are `CLASS/`, `SIDE/CLASS/` (sides are train, val or valid, test), `CLASS/SIDE/`, `DOMAIN/CLASS/`,
`SIDE/DOMAIN/CLASS/` and `DOMAIN/SIDE/CLASS/`. A folder of a split never becomes a class.
"""

import errno
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from fedrsclip_jax.data.decoding import EXTENSIONS
from fedrsclip_jax.errors import InputError

SIDES = ("train", "validation", "test")
LAYOUTS = ("auto", "classes", "domains")
_SIDE_OF = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 2, "testing": 2}


class Place(NamedTuple):
    """A folder with images of one class.

    Attributes:
      folder: where they are, directly or deeper.
      class_folder: name of the class's folder.
      side: of the split that the folders are, a position in `SIDES`; None where they are none.
      domain: name of the domain's folder; None where there are no domains.
    """

    folder: Path
    class_folder: str
    side: int | None = None
    domain: str | None = None


class Layout(NamedTuple):
    """Where the images of a folder are.

    Attributes:
      places: class by class in natural order, within a class in the order of the folders.
      remarks: sentences on what was recognised and how to say otherwise.
    """

    places: list[Place]
    remarks: list[str]


def read_layout(root: Path, layout: str = "auto") -> Layout:
    """Finds the class folders.

    Args:
      root: a folder.
      layout: `auto` recognises what the folders hold; `classes` takes each folder of `root` for a class, whatever it is
        called; `domains` takes them for domains, above whose class folders there may be a split.

    Raises:
      InputError: no folders, or folders of a split that are not a split.
    """
    folders = folders_in(root)
    if not folders:
        raise InputError(f"folder {root} has no class folders; put each class's images into a folder")
    plain = [Place(folder, folder.name) for folder in folders]
    if layout == "classes":
        return Layout(plain, [])
    if sides := _split(root, folders):
        inner = [
            place._replace(side=side)
            for side, folder in sides.items()
            for place in _classes_or_domains(folder, folders_in(folder), layout)
        ]
        named = ", ".join(f"{folder.name}/" for folder in sides.values())
        return Layout(_ordered(inner), [f"{root} brings a split: {named}"])
    if layout == "auto" and len(folders) > 1 and all(_is_split_of_class(folder) for folder in folders):
        inner = [Place(below, folder.name, _side(below)) for folder in folders for below in folders_in(folder)]
        return Layout(inner, [f"{root} brings a split: each class has folders for its sides"])
    if all(_side(folder) is not None for folder in folders) and len(folders) > 1:
        raise _no_split(root, folders)
    places = _classes_or_domains(root, folders, layout)
    if places[0].domain is not None:
        domains, classes = (len({getattr(place, part) for place in places}) for part in ("domain", "class_folder"))
        say = f"{root}: its {domains} folders are taken for domains, as they hold the same folders of {classes} classes"
        return Layout(_ordered(places), [f"{say}; to take them for classes: data.layout=classes"])
    shared = _shared(folders)
    if shared and layout == "auto":
        listed = ", ".join(shared[:3]) + (", ..." if len(shared) > 3 else "")
        say = (
            f"{root}: its {len(folders)} folders are taken for classes, although they hold the same folders ({listed})"
        )
        return Layout(plain, [f"{say}; to take them for domains of {len(shared)} classes: data.layout=domains"])
    return Layout(plain, [])


def folders_in(folder: Path) -> list[Path]:
    """Folders directly in a folder, in natural order; hidden ones are ignored."""
    with os.scandir(folder) as entries:
        found = [Path(entry.path) for entry in entries if not hidden(entry.name) and leads_to(entry.is_dir)]
    return sorted(found, key=natural)


def leads_to(kind: Callable[[], bool]) -> bool:
    """What `kind` says of a directory's entry; False where it is a link in a circle, as `pathlib` has it."""
    try:
        return kind()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False
        raise


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and those below it, in natural order; hidden ones are ignored."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted((path for path in found if not any(map(hidden, path.relative_to(folder).parts))), key=natural)


def is_image(path: Path) -> bool:
    """Whether a file is called like an image that can be read."""
    return path.suffix.lower() in EXTENSIONS


def images_below(folder: Path) -> list[Path]:
    """Image files in a folder and those below it, in natural order; hidden ones are ignored."""
    return [path for path in files_below(folder) if is_image(path)]


def kinds(files: Iterable[Path]) -> str:
    """How many files there are of each kind, by their ends: `12 gif, 3 xml`."""
    counts = Counter(path.suffix.lower().lstrip(".") or "without an end" for path in files)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])))


def hidden(name: str) -> bool:
    """Whether a file or folder is none of the person's own."""
    return name.startswith(".") or name == "__MACOSX"


def natural(path: Path) -> tuple:
    """A key that sorts numbers in names by their size."""
    parts = re.split(r"(\d+)", path.as_posix())
    return [(int(part), "") if part.isdecimal() else (-1, part.lower()) for part in parts], path.as_posix()


def _ordered(places: Sequence[Place]) -> list[Place]:
    return sorted(places, key=lambda place: natural(Path(place.class_folder)))


def _side(folder: Path) -> int | None:
    return _SIDE_OF.get(folder.name.lower())


def _holds_images(folder: Path) -> bool:
    """Directly in it."""
    with os.scandir(folder) as entries:
        return any(
            not hidden(entry.name) and is_image(Path(entry.name)) and leads_to(entry.is_file) for entry in entries
        )


def _split(root: Path, folders: Sequence[Path]) -> dict[int, Path]:
    """By side the folders of a split, which hold class folders; empty where these folders are no split.

    Raises:
      InputError: one side twice, or folders with images beside those of the split.
    """
    named = [folder for folder in folders if _side(folder) is not None and folders_in(folder)]
    sides = {side: folder for folder in reversed(named) if (side := _side(folder)) is not None}
    if len(sides) < 2 or 0 not in sides:
        return {}
    if len(named) > len(sides):
        twice = next(folder for folder in named if folder not in sides.values())
        raise InputError(f"folder {root} has two folders for one side of a split, {twice.name}/ among them; keep one")
    for folder in folders:
        if folder not in named and images_below(folder):
            listed = ", ".join(f"{side.name}/" for side in named)
            raise InputError(
                f"folder {root} has {folder.name}/ beside the folders of a split ({listed}); move it away, or give "
                "data.layout=classes where all of these are classes"
            )
    return dict(sorted(sides.items()))


def _is_split_of_class(folder: Path) -> bool:
    """Whether a class folder holds its images in folders of a split."""
    below = folders_in(folder)
    sides = [_side(each) for each in below]
    return len(sides) > 1 and None not in sides and 0 in sides and all(map(_holds_images, below))


def _no_split(root: Path, folders: Sequence[Path]) -> InputError:
    listed = ", ".join(f"{folder.name}/" for folder in folders)
    flat = ", ".join(f"{folder.name}/" for folder in folders if not folders_in(folder))
    what = f"no class folders in {flat}" if flat else "no train/"
    return InputError(
        f"folder {root} has {listed}, which are sides of a split, and {what}; give each of them a folder a class, "
        "move away what has none, or say data.layout=classes where these are classes"
    )


def _classes_or_domains(root: Path, folders: Sequence[Path], layout: str) -> list[Place]:
    if layout == "auto" and not (len(_shared(folders)) > len(folders) or _are_split(folders)):
        return [Place(folder, folder.name) for folder in folders]
    places = []
    for domain in folders:
        below = folders_in(domain)
        if not below:
            raise InputError(
                f"folder {domain} has no class folders, and is to be a domain; leave data.layout=domains out, or put a "
                "folder a class into it"
            )
        sides = _split(domain, below)
        for side, folder in sides.items() if sides else [(None, domain)]:
            places += [Place(each, each.name, side, domain.name) for each in folders_in(folder)]
    return places


def _are_split(folders: Sequence[Path]) -> bool:
    """Whether each of some folders holds a split of class folders."""
    return len(folders) > 1 and all(_split(folder, folders_in(folder)) for folder in folders)


def _shared(folders: Sequence[Path]) -> list[str]:
    """Names of folders that most of these hold: they are classes in domains. Empty where there are no such."""
    if len(folders) < 2 or any(map(_holds_images, folders)):
        return []
    below = [{each.name for each in folders_in(folder) if not each.name.isdecimal()} for folder in folders]
    counts = Counter(name for names in below for name in names)
    common = [name for name, count in counts.items() if count > 1]
    if any(len(names) < 2 for names in below) or 2 * len(common) < len(counts):
        return []
    return sorted(counts)

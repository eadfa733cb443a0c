"""A split and owners that a person gives, on positions or paths, instead of drawing them."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.data.sources import ImageSource
from fedrsclip_jax.errors import InputError

_NOBODY = -1


def split(
    source: ImageSource, train: Iterable[Any] | None, test: Iterable[Any] | None
) -> tuple[Int32[np.ndarray, "train"], Int32[np.ndarray, "test"]]:
    """Ascending positions of the images to train on and to score; of one side alone, the other is all the rest.

    Args:
        train, test: positions, paths, or a mask of all images.

    Raises:
        InputError: an image that is not there, or is on both sides, or a side without any.
    """
    everything = np.arange(len(source), dtype=np.int32)
    first = everything if train is None else _positions(source, train, "train")
    second = np.setdiff1d(everything, first) if test is None else _positions(source, test, "test")
    if train is None:
        first = np.setdiff1d(everything, second)
    both = np.intersect1d(first, second)
    if len(both):
        raise InputError(f"train and test: image {source.name(int(both[0]))} is in both; leave it in one")
    for name, side in (("train", first), ("test", second)):
        if not len(side):
            raise InputError(f"{name}: there are no images; give at least one")
    return first, second


def owned(
    source: ImageSource,
    owner: Sequence[Hashable] | Mapping[Any, Hashable],
    train: Int[np.ndarray, "train"],
    test: Int[np.ndarray, "test"],
) -> tuple[Partition, tuple[str, ...]]:
    """The images of a split by who owns them; clients are numbered in the order of their names.

    Args:
        owner: of each image of the source, in its order; or by position or path, where the others are nobody's. None
            is nobody.

    Returns:
        The partition, and what the clients are called; nothing where that is their numbers.

    Raises:
        InputError: not one owner an image, an image that is not there, or a client without a training image.
    """
    if isinstance(owner, Mapping):
        of_image: list[Any] = [None] * len(source)
        for place, name in zip(_positions(source, owner, "owner", sort=False), owner.values(), strict=True):
            of_image[place] = name
    else:
        of_image = list(owner)
    if len(of_image) != len(source):
        raise InputError(f"owner: {len(of_image)} are given for {len(source)} images; give one an image, or a dict")
    names = sorted({name for name in of_image if name is not None}, key=lambda name: (str(type(name)), name))
    numbers = {name: number for number, name in enumerate(names)}
    owners = np.array([_NOBODY if name is None else numbers[name] for name in of_image], np.int64)
    sides = [_dealt(side, owners, len(names)) for side in (train, test)]
    idle = np.flatnonzero(np.diff(sides[0][1]) == 0)
    if not names or len(idle):
        who = f"client {names[idle[0]]!r} has" if names else "the clients have"
        raise InputError(f"owner: {who} no training image; give one, or leave it out")
    if not len(sides[1][0]):
        raise InputError("owner: the clients have no test image; give some of theirs as test")
    called = tuple(str(name) for name in names)
    return Partition(*sides[0], *sides[1]), () if called == tuple(map(str, range(len(names)))) else called


def _dealt(
    images: np.ndarray, owners: np.ndarray, clients: int
) -> tuple[Int32[np.ndarray, "images"], Int64[np.ndarray, "bounds"]]:
    own = np.sort(images[owners[images] != _NOBODY])
    order = own[np.argsort(owners[own], kind="stable")]
    counts = np.bincount(owners[order], minlength=clients)
    return order.astype(np.int32), np.cumsum([0, *counts]).astype(np.int64)


def _positions(source: ImageSource, images: Iterable[Any], what: str, sort: bool = True) -> Int32[np.ndarray, "images"]:
    """Positions of images that are given as such, as paths or as a mask."""
    if isinstance(images, (str, Path)):
        raise InputError(f"{what}: {str(images)!r} is one path; give a list of paths or positions")
    given = list(images)
    if len(given) == len(source) and all(isinstance(each, (bool, np.bool_)) for each in given):
        return np.flatnonzero(given).astype(np.int32)
    found, paths = [], _Paths(source)
    for each in given:
        if isinstance(each, (str, Path)):
            found.append(paths.position(each, what))
        elif isinstance(each, (int, np.integer)) and not isinstance(each, bool) and 0 <= each < len(source):
            found.append(int(each))
        else:
            raise InputError(
                f"{what}: there is no image {each!r}; give positions from 0 to {len(source) - 1}, paths, or a mask"
            )
    unique, first = np.unique(np.array(found, np.int64), return_index=True)
    if len(unique) < len(found):
        twice = found[next(i for i in range(len(found)) if i not in set(first.tolist()))]
        raise InputError(f"{what}: image {source.name(twice)} is given twice; give it once")
    return unique.astype(np.int32) if sort else np.array(found, np.int32)


class _Paths:
    """Positions of images by path: as the source names them, or by their last parts, such as `river/1.png`."""

    def __init__(self, source: ImageSource):
        self._source = source
        self._by_length: dict[int, dict[str, list[int]]] = {}

    def position(self, path: str | Path, what: str) -> int:
        path = Path(path).expanduser()
        parts = path.resolve().parts if path.is_absolute() or path.exists() else path.parts
        found = self._endings(len(parts)).get("/".join(parts), [])
        if not found and path.parts != parts:  # a link, or a folder of the same name beside this one
            found = self._endings(len(path.parts)).get("/".join(path.parts), [])
        if len(found) != 1:
            reason = f"{len(found)} images end so; write more of the path" if found else "there is no such image"
            raise InputError(f"{what}: {path}: {reason} (the first image is {self._source.name(0)})")
        return found[0]

    def _endings(self, length: int) -> dict[str, list[int]]:
        if length not in self._by_length:
            endings = self._by_length[length] = {}
            for i in range(len(self._source)):
                parts = Path(self._source.name(i)).absolute().parts
                endings.setdefault("/".join(parts[-length:]), []).append(i)
        return self._by_length[length]

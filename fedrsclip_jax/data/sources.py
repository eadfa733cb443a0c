"""Where images come from: what every source has, views on sources, and a source by its name in a configuration.

A source gives decoded images one at a time and describes them by arrays, so that splitting and partitioning
never decode a picture. Each image has a *digest* of its content: equal digests are exact duplicates, which a
split must keep together, and the digests of all images are the fingerprint of a source.
"""

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int, Int32, UInt8

from fedrsclip_jax.data.folder import Folder
from fedrsclip_jax.data.tfds import Tfds
from fedrsclip_jax.errors import InputError


@runtime_checkable
class ImageSource(Protocol):
    """Labelled images that can be opened in any order.

    Attributes:
        class_names: readable class names; a label is a position in it.
        labels: class of each image, int32 [images].
        domain_names: names of the sensors (or sites); `("all",)` where a source knows of none.
        domains: sensor of each image, int32 [images].
        digests: hex digest of the content of each image; equal digests mean equal images.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def labels(self) -> Int32[np.ndarray, "images"]: ...
    @property
    def domain_names(self) -> tuple[str, ...]: ...
    @property
    def domains(self) -> Int32[np.ndarray, "images"]: ...
    @property
    def digests(self) -> list[str]: ...

    def __len__(self) -> int: ...

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Image `i` as RGB; raises `InputError` that names the file where it cannot be decoded."""
        ...

    def name(self, i: int) -> str:
        """What to call image `i` in a message: a path, or a position in a data set."""
        ...


class Subset:
    """The images `indices` of a source, in that order; classes and domains keep their numbers."""

    def __init__(self, source: ImageSource, indices: Int[np.ndarray, "images"]):
        self.source = source
        self.indices = indices
        self.class_names, self.domain_names = source.class_names, source.domain_names
        self.labels, self.domains = source.labels[indices], source.domains[indices]
        sides = sides_of(source)
        self.sides = None if sides is None else sides[indices]
        self.remarks = remarks_of(source)

    @property
    def digests(self) -> list[str]:
        digests = self.source.digests
        return [digests[i] for i in self.indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        return self.source.image(int(self.indices[i]))

    def name(self, i: int) -> str:
        return self.source.name(int(self.indices[i]))


def half(source: ImageSource, which: str, seed: int) -> Subset:
    """One of two halves, `pretrain` or `federate`, that have no image in common, not even as a duplicate.

    Each class is cut in the middle of its distinct images, ordered by sha256(digest, seed), whatever the
    order of the files. Duplicates go where their first one goes, even under another label. Of an odd number,
    `federate` gets the larger part.
    """
    if which not in ("pretrain", "federate"):
        raise InputError(f"half {which!r} is not known; allowed are 'pretrain' and 'federate'")
    first_class: dict[str, int] = {}
    for digest, label in zip(source.digests, source.labels, strict=True):
        first_class.setdefault(digest, int(label))
    members: dict[int, list[str]] = {}
    for digest, label in first_class.items():
        members.setdefault(label, []).append(digest)
    pretrain: set[str] = set()
    for digests in members.values():
        digests.sort(key=lambda digest: hashlib.sha256(f"{digest}/{seed}".encode()).digest())
        pretrain.update(digests[: len(digests) // 2])
    wanted = which == "pretrain"
    chosen = [i for i, digest in enumerate(source.digests) if (digest in pretrain) == wanted]
    return Subset(source, np.array(chosen, np.int64))


def sides_of(source: ImageSource) -> Int[np.ndarray, "images"] | None:
    """The split that a source brings: positions in `layout.SIDES`, -1 for images of none; None where it brings none."""
    return getattr(source, "sides", None)


def remarks_of(source: ImageSource) -> list[str]:
    """Sentences on what a person should know of a source."""
    return [*getattr(source, "remarks", ())]


def fingerprint(source: ImageSource) -> str:
    """sha256 over the images, labels and class names of a source, in their order."""
    return _sha256([*source.class_names, *source.digests], np.ascontiguousarray(source.labels, "<i4").tobytes())


def fingerprint_of_images(source: ImageSource) -> str:
    """sha256 over the images alone: what they are called, and how names are merged, does not change it."""
    return _sha256(source.digests)


def _sha256(parts: Iterable[str], last: bytes = b"") -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    total.update(last)
    return total.hexdigest()


def open_source(
    spec: str,
    *,
    scenes_count: int,
    scenes_size: int,
    scenes_domains: tuple[str, ...],
    seed: int,
    data_dir: str | Path | None = None,
    layout: str = "auto",
) -> ImageSource:
    """Opens `scenes`, `folder:PATH` or `tfds:NAME`.

    Only `tfds` uses `data_dir`, only `folder` uses `layout`, and only `scenes` the others.

    Raises:
        InputError: another kind of source, or one that cannot be opened.
    """
    kind, colon, rest = spec.partition(":")
    if kind == "scenes" and not colon:
        from fedrsclip_jax.data.scenes import Scenes

        return Scenes(scenes_count, size=scenes_size, seed=seed, domains=scenes_domains)
    if kind == "folder" and rest:
        return Folder(rest, layout)
    if kind == "tfds" and rest:
        return Tfds(rest, data_dir)
    raise InputError(f"data.source={spec!r} is not known; use scenes, folder:PATH or tfds:NAME")


_KINDS = ("folder:", "tfds:")  # what stands before the place or the name of a source


def split_spec(spec: str) -> list[str]:
    """The sources of `data.source`, which stand one after another with commas between; a path may hold commas."""
    return [_with_kind(one) for one in re.split(r",(?=scenes(?:,|$)|folder:|tfds:)", spec)]


def of_folders(spec: str) -> bool:
    """Whether one of the sources is a folder, in which `classnames.txt` can name the classes."""
    return any(one.startswith("folder:") for one in split_spec(spec))


def named_spec(names: str) -> str:
    """`data.source` for names as a person gives them, with commas between: those of TFDS need no `tfds:`."""
    given = [_with_kind(name) for name in names.split(",")]
    return ",".join(name if name == "scenes" or name.startswith(_KINDS) else f"tfds:{name}" for name in given)


def _with_kind(spec: str) -> str:
    """A folder that is there may be given as its path alone."""
    if spec == "scenes" or spec.startswith(_KINDS) or not spec or not Path(spec).expanduser().is_dir():
        return spec
    return f"folder:{spec}"

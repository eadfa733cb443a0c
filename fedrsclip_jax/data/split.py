"""The split of a source into training and test images: drawn by a seed, or as its folders give it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from fedrsclip_jax.data.layout import SIDES
from fedrsclip_jax.data.sources import ImageSource, sides_of
from fedrsclip_jax.errors import InputError

_STREAM = 0x5917  # keeps this use of a seed apart from every other


def stratified_split(
    labels: Int[np.ndarray, "images"],
    digests: Sequence[str],
    test_fraction: float,
    seed: int,
    eligible: Bool[np.ndarray, "images"],
    class_names: Sequence[str] | None = None,
    strata: Int[np.ndarray, "images"] | None = None,
) -> tuple[Int32[np.ndarray, "train"], Int32[np.ndarray, "test"]]:
    """Splits the eligible images class by class, as near to `test_fraction` as whole images allow.

    Images of equal digest stay together (with the first of them, should their labels differ), and each class
    keeps at least one image on either side. The draw of a class depends on the seed and that class only.

    With `strata` the test images of a class are spread evenly over its strata, by systematic sampling (Madow 1949,
    doi:10.1214/aoms/1177729988) from a random start in each: a stratum of n images of the class gives n x
    `test_fraction` of them on average, up to one more or less.

    Args:
        labels: class of each image.
        digests: digest of the content of each image.
        test_fraction: share of test images, above 0 and below 1.
        seed: a non-negative integer.
        eligible: False for images that take part in neither side, such as unreadable ones.
        class_names: names for messages; each of these classes must then have images.
        strata: of each image, such as its sensor; images of equal digest are of the first one's.

    Returns:
        Ascending positions of the training and of the test images.

    Raises:
        InputError: `test_fraction` out of range, or a class with fewer than two distinct images.
    """
    if not 0.0 < test_fraction < 1.0:
        raise InputError(
            f"data.test_fraction={test_fraction} is out of range; give a number between 0 and 1, such as 0.2"
        )
    groups: dict[str, list[int]] = {}  # the images of one digest, in the order of the source
    for i in np.flatnonzero(eligible):
        groups.setdefault(digests[int(i)], []).append(int(i))
    by_class: dict[int, list[list[int]]] = {int(c): [] for c in np.unique(labels)}
    by_class |= {c: by_class.get(c, []) for c in range(len(class_names or ()))}
    for members in groups.values():
        by_class[int(labels[members[0]])].append(members)

    train: list[int] = []
    test: list[int] = []
    for label, distinct in sorted(by_class.items()):
        if len(distinct) < 2:
            name = repr(class_names[label]) if class_names else label
            raise InputError(
                f"class {name} has {len(distinct)} distinct readable image(s) and needs at least two, one to "
                "train and one to test; add images or remove the class"
            )
        rng = np.random.default_rng((seed, _STREAM, label))
        order = rng.permutation(len(distinct))
        if strata is not None:
            order = _interleaved(order, np.array([strata[distinct[g][0]] for g in order]), rng)
        filled = np.cumsum([len(distinct[g]) for g in order])
        # The cut whose number of test images is nearest to what was asked for.
        cut = 1 + int(np.argmin(np.abs(filled[:-1] - test_fraction * filled[-1])))
        test += [i for g in order[:cut] for i in distinct[g]]
        train += [i for g in order[cut:] for i in distinct[g]]
    return np.sort(np.array(train, np.int32)), np.sort(np.array(test, np.int32))


def _interleaved(
    order: Int[np.ndarray, "groups"], strata: Int[np.ndarray, "groups"], rng: np.random.Generator
) -> Int[np.ndarray, "groups"]:
    """The same in an order of which every beginning holds each stratum in its share; within a stratum as before."""
    place = np.empty(len(order))
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        place[members] = (np.arange(len(members)) + rng.random()) / len(members)
    return order[np.argsort(place, kind="stable")]


def given_split(
    labels: Int[np.ndarray, "images"],
    sides: Int[np.ndarray, "images"],
    eligible: Bool[np.ndarray, "images"],
    class_names: Sequence[str],
    validation: bool,
) -> tuple[Int32[np.ndarray, "train"], Int32[np.ndarray, "test"]]:
    """The split that a source brings: its training images, and those that are scored.

    Args:
        labels, eligible: see `stratified_split`.
        sides: of each image, a position in `layout.SIDES`.
        class_names: each of these classes has to have images on both sides.
        validation: whether the images to choose settings on are scored, and not those of the test. Without test
            images those of the validation take their place.

    Returns:
        Ascending positions of the images to train on and to score. None are scored where `validation` is asked for and
        the source brings none: they are to be drawn from the training images.

    Raises:
        InputError: a class without images on one of the sides.
    """
    scored = scored_side(sides, validation)
    used = (0,) if scored is None else (0, scored)
    parts = [np.flatnonzero((sides == side) & eligible).astype(np.int32) for side in used]
    for side, part in zip(used, parts, strict=True):
        missing = np.setdiff1d(np.arange(len(class_names)), labels[part])
        if len(missing):
            raise InputError(
                f"class {class_names[missing[0]]!r} has no readable image on the {SIDES[side]} side of the split that "
                "the folders are; add some, remove the class, or draw a split with data.split=drawn"
            )
    return parts[0], np.zeros(0, np.int32) if scored is None else parts[1]


def scored_side(sides: Int[np.ndarray, "images"], validation: bool) -> int | None:
    """The side of a given split whose images are scored; see `given_split`.

    Returns:
        A position in `layout.SIDES`; None where validation images have to be drawn from the training images.
    """
    brings_validation, brings_test = (bool(np.any(sides == side)) for side in (1, 2))
    if validation:
        return 1 if brings_validation and brings_test else None
    return 2 if brings_test else 1


def given_sides(split: str, source: ImageSource) -> Int[np.ndarray, "images"] | None:
    """Sides of the split that the source brings, as `data.split` has it; None where the split is drawn.

    Raises:
        InputError: `data.split=folder` without such a split, or one of several sources brings none.
    """
    sides = None if split == "drawn" else sides_of(source)
    if sides is None and split == "folder":
        raise InputError(
            "data.split=folder: the images bring no split; put class folders into train/ and test/ (and val/), or "
            "leave data.split out, which draws one"
        )
    if sides is not None and (sides < 0).any():
        raise InputError(
            f"data.source: some of these sources bring a split and others none, such as that of "
            f"{source.name(int(np.argmin(sides)))}; give data.split=drawn, which draws one for all"
        )
    return sides

"""The split of a source into training and test images."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32

from fedrsclip_jax.errors import InputError

_STREAM = 0x5917  # keeps this use of a seed apart from every other


def stratified_split(
    labels: Int[np.ndarray, "images"],
    digests: Sequence[str],
    test_fraction: float,
    seed: int,
    eligible: Bool[np.ndarray, "images"],
    class_names: Sequence[str] | None = None,
) -> tuple[Int32[np.ndarray, "train"], Int32[np.ndarray, "test"]]:
    """Splits the eligible images class by class, as near to `test_fraction` as whole images allow.

    Images of equal digest stay together (with the first of them, should their labels differ), and each class
    keeps at least one image on either side. The draw of a class depends on the seed and that class only.

    Args:
        labels: class of each image.
        digests: digest of the content of each image.
        test_fraction: share of test images, above 0 and below 1.
        seed: a non-negative integer.
        eligible: False for images that take part in neither side, such as unreadable ones.
        class_names: names for messages; each of these classes must then have images.

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
        order = np.random.default_rng((seed, _STREAM, label)).permutation(len(distinct))
        filled = np.cumsum([len(distinct[g]) for g in order])
        # The cut whose number of test images is nearest to what was asked for.
        cut = 1 + int(np.argmin(np.abs(filled[:-1] - test_fraction * filled[-1])))
        test += [i for g in order[:cut] for i in distinct[g]]
        train += [i for g in order[cut:] for i in distinct[g]]
    return np.sort(np.array(train, np.int32)), np.sort(np.array(test, np.int32))

"""Base classes and new ones, by hand."""

import numpy as np

from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.halves import base_and_new


class Numbers:
    """Seven images of five classes, of which only the numbers are looked at."""

    class_names = ("river", "lake", "beach", "desert", "runway")
    domain_names = ("one", "other")
    labels = np.array([4, 0, 2, 3, 1, 3, 0], np.int32)
    domains = np.array([0, 1, 0, 1, 0, 1, 0], np.int32)
    digests = property(lambda self: [f"digest {i}" for i in range(7)])

    def __len__(self) -> int:
        return 7

    def image(self, i: int) -> np.ndarray:
        return np.full((1, 1, 3), i, np.uint8)

    def name(self, i: int) -> str:
        return f"image {i}"


def test_the_first_half_of_the_classes_is_the_larger():
    base, new = base_and_new(Numbers())
    assert base.class_names == ("river", "lake", "beach")
    assert new.class_names == ("desert", "runway")
    assert base.indices.tolist() == [1, 2, 4, 6]
    assert new.indices.tolist() == [0, 3, 5]


def test_either_half_numbers_its_classes_from_zero_and_keeps_its_images():
    base, new = base_and_new(Numbers())
    assert base.labels.tolist() == [0, 2, 1, 0]
    assert new.labels.tolist() == [1, 0, 0]
    assert base.labels.dtype == new.labels.dtype == np.int32
    assert new.domains.tolist() == [0, 1, 1]
    assert new.digests == ["digest 0", "digest 3", "digest 5"]
    assert [int(new.image(i)[0, 0, 0]) for i in range(len(new))] == [0, 3, 5]


def test_too_few_classes_to_halve(refused):
    few = Numbers()
    few.class_names = few.class_names[:3]
    with refused("eval.base_to_new", "there are 3", "at least 4"):
        base_and_new(few)


def test_features_of_some_images():
    plain = np.arange(6, dtype=np.float32).reshape(3, 2)
    readable = np.array([True, False, True])
    single = Features(plain, (plain,), readable).of(np.array([2, 0]))
    assert single.plain.tolist() == [[4, 5], [0, 1]]
    assert len(single.views) == 1
    assert single.views[0] is single.plain
    assert single.readable.tolist() == [True, True]
    several = Features(plain, (plain + 10, plain + 20), readable).of(np.array([1]))
    assert [view.tolist() for view in several.views] == [[[12, 13]], [[22, 23]]]
    assert several.readable.tolist() == [False]

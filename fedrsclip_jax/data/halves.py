"""Base classes, which a federation sees, and new ones, whose names it meets at the end."""

import numpy as np

from fedrsclip_jax.data.sources import ImageSource, Subset
from fedrsclip_jax.errors import InputError

FEWEST = 4  # classes: with three, one would be new, and nothing to take it for


class ClassRange(Subset):
    """The images of the classes `first` to `end - 1` of a source, which are numbered from 0."""

    def __init__(self, source: ImageSource, first: int, end: int):
        super().__init__(source, np.flatnonzero((source.labels >= first) & (source.labels < end)))
        self.class_names = source.class_names[first:end]
        self.labels = self.labels - np.int32(first)


def base_and_new(source: ImageSource) -> tuple[ClassRange, ClassRange]:
    """The first half of the classes in their order, of an odd number the larger part, and the others.

    As in CoCoOp (Zhou et al. 2022, arXiv:2203.05557), for base-to-new generalisation.

    Raises:
      InputError: so few classes that there is nothing to tell apart.
    """
    classes = len(source.class_names)
    if classes < FEWEST:
        raise InputError(f"eval.base_to_new = True halves the classes, and there are {classes}; give at least {FEWEST}")
    cut = -(-classes // 2)
    return ClassRange(source, 0, cut), ClassRange(source, cut, classes)

"""How exactly the frozen towers compute: what the key `dtype` stands for.

Accelerators round the factors of single-precision products unless they are told not to: GPUs to TF32 (10 bits of
fraction), TPUs to bfloat16 (7 bits). The precision is therefore an argument of every product of the towers, where no
setting of JAX's can be forgotten or changed. What is trained and scored on top is always in full single precision.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple

import jax

FULL = jax.lax.Precision.HIGHEST


class Arithmetic(NamedTuple):
    """Type of the weights and of activations, and precision of products."""

    weights: str
    products: jax.lax.Precision


ARITHMETIC = {
    "float32": Arithmetic("float32", FULL),
    # TF32 on GPUs; on TPUs, which have none, three passes of bfloat16, which are not less exact.
    "tensorfloat32": Arithmetic("float32", jax.lax.Precision.HIGH),
    "bfloat16": Arithmetic("bfloat16", jax.lax.Precision.DEFAULT),
}


def in_full() -> AbstractContextManager:
    """What is traced inside computes products of no stated precision in full: those of people's own methods."""
    return jax.default_matmul_precision("highest")


def same_everywhere(dtype: str) -> bool:
    """Whether every kind of device computes the same, but for the order of sums."""
    return ARITHMETIC[dtype].products == FULL

"""Adam in Optax's form, whose bits do not depend on the program that it is compiled into."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree


class AdamState(NamedTuple):
    """Steps so far, and running means of the gradient and of its square."""

    count: Int[Array, ""]
    mean: PyTree
    square: PyTree


def scale_by_adam(b1: Float[Array, ""], b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps), Kingma and Ba 2015, arXiv:1412.6980.

    `optax.scale_by_adam`, but for the corrections: there they are divisors, which XLA turns into factors in a program
    for several devices and leaves in a program for one. Here they are factors.
    """

    def init(params: PyTree) -> AdamState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(updates: PyTree, state: Any, params: PyTree | None = None) -> tuple[PyTree, AdamState]:
        count = state.count + 1
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, updates)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.square, updates)
        taken = count.astype(jnp.float32)
        for_mean, for_square = 1 / (1 - b1**taken), 1 / (1 - b2**taken)
        step = jax.tree.map(lambda m, v: m * for_mean / (jnp.sqrt(v * for_square) + eps), mean, square)
        return step, AdamState(count, mean, square)

    return optax.GradientTransformation(init, update)

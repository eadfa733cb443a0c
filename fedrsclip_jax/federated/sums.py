"""Sums over clients, the leading axis; rows of weight 0 have no influence and may hold anything, NaN too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

Weights = Float[Array, " clients"]


def weighted_sum(values: PyTree, weights: Weights) -> PyTree:
    """sum_k weights_k values_k, in whatever order is fastest."""
    # Weights are counts of images, which are no numbers of 11 bits; that is what an accelerator may make of them.
    precise = jax.lax.Precision.HIGHEST
    return jax.tree.map(lambda leaf: jnp.tensordot(weights, zero_out(leaf, weights), axes=1, precision=precise), values)


def ordered_weighted_sum(values: PyTree, weights: Weights) -> PyTree:
    """`weighted_sum`, added strictly in the order of clients: the same bits on however many devices they trained."""

    def weighted(leaf):
        return weights.reshape(-1, *[1] * (leaf.ndim - 1)) * zero_out(leaf, weights)

    # Products are rounded before any is added: whether a compiler fuses the two differs from program to program.
    terms = jax.lax.optimization_barrier(jax.tree.map(weighted, values))

    def add(row, total):
        return jax.tree.map(lambda so_far, term: so_far + term[row], total, terms)

    return jax.lax.fori_loop(1, weights.shape[0], add, jax.tree.map(lambda term: term[0], terms))


def zero_out(leaf: Float[Array, "clients ..."], weights: Weights) -> Float[Array, "clients ..."]:
    """Zeros in the rows of weight 0."""
    return jnp.where(by_row(weights > 0, leaf), leaf, 0.0)


def by_row(mask: Bool[Array, " clients"], leaf: Array) -> Bool[Array, "clients ..."]:
    """A mask of rows, of as many axes as the leaf."""
    return mask.reshape(-1, *[1] * (leaf.ndim - 1))

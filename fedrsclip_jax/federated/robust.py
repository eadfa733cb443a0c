"""Averages of clients' changes that a few faulty clients cannot carry off, in optax's form.

An aggregator is a pair (init, update) as of any optax transformation; its `update` takes changes with a leading axis
of clients, and their weights as the extra argument `weights`, and returns one change. So it stands at the head of an
`optax.chain`, in front of clipping and the server's optimiser. Clients of weight 0 (no answer, padding, not finite)
have no influence, whatever their rows hold. How many answer is a traced number: nothing compiles anew for it.

All of these treat clients alike, as the papers do: a weight says only whether a client counts. Weighted by images, one
faulty client with many images would outweigh the honest ones.
"""

import math
from collections.abc import Callable
from fractions import Fraction

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree

from fedrsclip_jax.federated.sums import Weights, by_row, ordered_weighted_sum, zero_out

Aggregator = optax.GradientTransformationExtraArgs
Deltas = PyTree[Float[Array, "clients ..."]]


def stateless_aggregator(rule: Callable[[Deltas, Weights], PyTree]) -> Aggregator:
    """The pair of an aggregator that keeps nothing between rounds."""

    def update(updates, state, params=None, **extra):
        return rule(updates, extra["weights"]), state

    return Aggregator(lambda params: optax.EmptyState(), update)


def median() -> Aggregator:
    """The median of each coordinate (Yin et al. 2018, arXiv:1803.01498): holds while under half of the clients fail.

    Of an even number of clients it is the middle between the two in the middle.
    """

    def rule(deltas: Deltas, weights: Weights) -> PyTree:
        count = _count(weights)

        def one(leaf):
            ranked = _ranked(leaf, weights)
            lower, upper = ranked[jnp.maximum(count - 1, 0) // 2], ranked[count // 2]
            # Halved before they are added, as the sum of two large numbers may not be finite; the barrier keeps the
            # compiler from halving the sum instead.
            lower, upper = jax.lax.optimization_barrier((0.5 * lower, 0.5 * upper))
            return jnp.where(count > 0, lower + upper, 0.0)

        return jax.tree.map(one, deltas)

    return stateless_aggregator(rule)


def trimmed_mean(share: float) -> Aggregator:
    """The mean of each coordinate without its largest and smallest values (Yin et al. 2018, arXiv:1803.01498).

    Args:
      share: of the answering clients that is cut at each end, below 0.5, rounded down; holds while no greater share
        fails.
    """

    def rule(deltas: Deltas, weights: Weights) -> PyTree:
        (clients,) = weights.shape
        count = _count(weights)
        # A table, as 0.29 x 100 in floating point is less than 29.
        cut = jnp.asarray([trimmed(share, answering) for answering in range(clients + 1)], jnp.int32)[count]
        rank = jnp.arange(clients, dtype=jnp.int32)
        kept = (rank >= cut) & (rank < count - cut)
        return _mean_of(jax.tree.map(lambda leaf: _ranked(leaf, weights), deltas), kept)

    return stateless_aggregator(rule)


def trimmed(share: float, clients: int) -> int:
    """How many of so many clients a trimmed mean cuts at each end."""
    return math.floor(Fraction(str(share)) * clients)


def krum(faulty: int) -> Aggregator:
    """The change of the one client that stands closest to others (Blanchard et al. 2017, arXiv:1703.02757).

    Client i's score is the sum of |d_i - d_j|^2 over the n - faulty - 2 clients j that are nearest to it, of n that
    answer; the least score is taken, and of equal ones the first. Holds while 2 faulty + 2 < n; with fewer answers
    the score takes at least the nearest one.

    Args:
      faulty: clients that may be faulty in a cohort.
    """
    return _nearest(faulty, lambda count: jnp.minimum(count, 1))


def multi_krum(faulty: int) -> Aggregator:
    """The mean of the n - faulty - 2 clients of the least Krum scores (Blanchard et al. 2017); see `krum`.

    So many is the most that Damaskinos et al. 2019 (AggregaThor) show to be resilient.
    """
    return _nearest(faulty, lambda count: jnp.minimum(count, jnp.maximum(count - faulty - 2, 1)))


def _nearest(faulty: int, take: Callable[[Int[Array, ""]], Int[Array, ""]]) -> Aggregator:
    def rule(deltas: Deltas, weights: Weights) -> PyTree:
        if not jax.tree.leaves(deltas):  # a method that shares nothing
            return deltas
        (clients,) = weights.shape
        answering, count = weights > 0, _count(weights)
        rows = jax.vmap(lambda row: ravel_pytree(row)[0])(jax.tree.map(lambda leaf: zero_out(leaf, weights), deltas))
        rows = jax.lax.optimization_barrier(rows)  # so that distances are computed alike in every program
        # A client at a time takes clients x parameters of memory. The product form |a|^2 + |b|^2 - 2 a.b would be
        # faster and wrong: one huge row makes it inf - inf.
        distances = jax.lax.map(lambda row: jnp.sum((rows - row[None]) ** 2, axis=1), rows)
        others = answering[:, None] & ~jnp.eye(clients, dtype=bool)
        ranked = jnp.sort(jnp.where(others, distances, jnp.inf), axis=0)
        near = jnp.arange(clients, dtype=jnp.int32) < jnp.maximum(count - faulty - 2, 1)
        scores = ordered_weighted_sum(ranked, near.astype(jnp.float32))
        order = jnp.lexsort((scores, ~answering))  # those who answer first, however large their scores
        chosen = (jnp.argsort(order) < take(count)) & answering
        return _mean_of(deltas, chosen)

    return stateless_aggregator(rule)


def _count(weights: Weights) -> Int[Array, ""]:
    return jnp.sum(weights > 0, dtype=jnp.int32)


def _ranked(leaf: Float[Array, "clients ..."], weights: Weights) -> Float[Array, "clients ..."]:
    """Each coordinate in rising order over the clients that count; then come infinities."""
    return jnp.sort(jnp.where(by_row(weights > 0, leaf), leaf, jnp.inf), axis=0)


def _mean_of(deltas: Deltas, rows: Bool[Array, " clients"]) -> PyTree:
    """The mean of some rows, added in their order; zeros if there are none."""
    one = rows.astype(jnp.float32)
    # Divided before they are added: the sum of large numbers may not be finite.
    return ordered_weighted_sum(deltas, one / jnp.maximum(jnp.sum(one), 1.0))

"""What the server does with the clients' changes: an average, clipping and an optimiser, chained in optax's form.

Plain FedAvg is the mean weighted by images, no clipping, and sgd at rate 1. A round whose aggregator needs no more
than sums (`needs_every_update` is False) adds up clipped changes by weight on each device and reduces once; the others
get every client's change, in the order of the cohort, on every device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from fedrsclip_jax.config import Config
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated import robust
from fedrsclip_jax.federated.robust import Aggregator, Deltas
from fedrsclip_jax.federated.sums import Weights, ordered_weighted_sum

# FedAvgM (Hsu et al. 2019, arXiv:1909.06335), FedAdam and FedYogi (Reddi et al. 2021, arXiv:2003.00295). Optax corrects
# the bias of both moments, which their Algorithm 2 does not.
_OPTIMIZERS: dict[str, Callable] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate, b1=0.9, b2=0.99, eps=1e-3),
    "yogi": lambda rate: optax.yogi(rate, b1=0.9, b2=0.99, eps=1e-3),
}


@dataclass(frozen=True)
class ServerPlan:
    """What the server does with the changes of a round; fixed at compile time.

    Attributes:
      aggregator: `mean`, `norm_clipped_mean` (both weighted by images), `median`, `trimmed_mean`, `krum` or
        `multi_krum` (which treat clients alike).
      optimizer: `sgd`, `momentum`, `adam` or `yogi`, applied to the average change.
      clip_norm: longest average change, as an L2 norm over all shared variables; 0 is no limit.
      client_norm: longest change of one client, likewise; of `norm_clipped_mean`.
      faulty: clients of a cohort that may be faulty; of `krum` and `multi_krum`.
      trim: share of clients that is cut at each end; of `trimmed_mean`.
    """

    aggregator: str = "mean"
    optimizer: str = "sgd"
    clip_norm: float = 0.0
    client_norm: float = 0.0
    faulty: int = 1
    trim: float = 0.1

    @classmethod
    def of(cls, config: Config) -> "ServerPlan":
        """The plan that a configuration asks for.

        Raises:
          InputError: `norm_clipped_mean` without a norm.
        """
        server = config.server
        if server.aggregator == "norm_clipped_mean" and not server.client_norm:
            raise InputError(
                "server.aggregator = 'norm_clipped_mean' with server.client_norm = 0 would clip every change to "
                "nothing; set server.client_norm to the length of a usual change, such as 0.1"
            )
        return cls(
            server.aggregator, server.optimizer, server.clip_norm, server.client_norm, server.faulty, server.trim
        )


class Server(NamedTuple):
    """What the server keeps between rounds: the shared variables and its optimiser's state."""

    shared: PyTree
    optimizer: PyTree


def check(plan: ServerPlan, cohort: int) -> None:
    """Refuses an aggregator that cannot do its work on so few clients.

    Raises:
      InputError: Krum with 2 faulty + 2 >= cohort, or a trimmed mean that cuts nobody.
    """
    if plan.aggregator in ("krum", "multi_krum") and cohort < 2 * plan.faulty + 3:
        most = (cohort - 3) // 2
        remedy = f"set server.faulty to at most {most}, or draw" if most >= 0 else "draw"
        raise InputError(
            f"server.aggregator = {plan.aggregator!r} needs at least 2 x server.faulty + 3 = {2 * plan.faulty + 3} "
            f"clients a round, and there are {cohort}; {remedy} more clients"
        )
    if plan.aggregator == "trimmed_mean" and not robust.trimmed(plan.trim, cohort):
        raise InputError(
            f"server.trim = {plan.trim:g} cuts nobody of {cohort} clients a round; set it to at least 1/{cohort} and "
            "below 0.5, draw more clients, or choose server.aggregator = 'median'"
        )


def needs_every_update(plan: ServerPlan) -> bool:
    """Whether the aggregator looks at clients one by one; if not, sums of `clip_update`'s results are enough."""
    return plan.aggregator not in ("mean", "norm_clipped_mean")


def clip_update(plan: ServerPlan, delta: PyTree) -> PyTree:
    """One client's change as a round adds it up: no longer than `client_norm` with `norm_clipped_mean`, else as it is.

    d / max(1, |d| / client_norm), Sun et al. 2019, arXiv:1911.07963. It bounds how far a faulty client carries the
    mean, whatever it sends; a change of usual length into the wrong direction passes.
    """
    if plan.aggregator != "norm_clipped_mean":
        return delta
    leaves = jax.tree.leaves(delta)
    if not leaves:  # a method that shares nothing
        return delta
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(leaf)) for leaf in leaves]))
    scale = jnp.where(largest > 0, largest, 1.0)  # the square of a large number may not be finite
    length = jnp.sqrt(sum((jnp.sum((leaf / scale) ** 2) for leaf in leaves), start=jnp.zeros_like(scale)))
    longest = plan.client_norm / jnp.maximum(length, 1.0)  # of `scale`; a length is 0, or at least 1
    return jax.tree.map(lambda leaf: jnp.where(scale > longest, leaf / scale * longest, leaf), delta)


def weighted_mean() -> Aggregator:
    """sum_k weights_k d_k / sum_k weights_k, added in the order of clients; weights are their images (FedAvg)."""

    def rule(deltas: Deltas, weights: Weights) -> PyTree:
        total = jnp.sum(weights)
        total = jnp.where(total > 0, total, 1.0)
        return jax.tree.map(lambda leaf: leaf / total, ordered_weighted_sum(deltas, weights))

    return robust.stateless_aggregator(rule)


def norm_clipped_mean(plan: ServerPlan) -> Aggregator:
    """`weighted_mean` of what `clip_update` leaves of each client's change."""

    def clip(deltas: Deltas, _: object) -> Deltas:
        return jax.vmap(lambda delta: clip_update(plan, delta))(deltas) if jax.tree.leaves(deltas) else deltas

    return optax.chain(optax.stateless(clip), weighted_mean())


_AGGREGATORS: dict[str, Callable[[ServerPlan], Aggregator]] = {
    "mean": lambda plan: weighted_mean(),
    "norm_clipped_mean": norm_clipped_mean,
    "median": lambda plan: robust.median(),
    "trimmed_mean": lambda plan: robust.trimmed_mean(plan.trim),
    "krum": lambda plan: robust.krum(plan.faulty),
    "multi_krum": lambda plan: robust.multi_krum(plan.faulty),
}


def aggregator(plan: ServerPlan) -> Aggregator:
    """The pair (init, update) from all clients' changes and the extra argument `weights` to one change."""
    return _AGGREGATORS[plan.aggregator](plan)


def aggregate(plan: ServerPlan, deltas: Deltas, weights: Weights) -> PyTree:
    """The change that the clients' changes amount to; zeros if nobody counts.

    Args:
      deltas: as clients sent them, not yet clipped.
      weights: images of each client; 0 if it did not answer, is padding or sent something that is not finite, and then
        its row may hold anything.
    """
    rule = aggregator(plan)
    return rule.update(deltas, rule.init(deltas), weights=weights)[0]


def server_optimizer(plan: ServerPlan, rate: Float[Array, ""]) -> optax.GradientTransformationExtraArgs:
    """From the average change to what is added to the shared variables: clipping, then the optimiser."""
    downhill = optax.stateless(lambda change, _: jax.tree.map(jnp.negative, change))
    steps = [optax.clip_by_global_norm(plan.clip_norm)] if plan.clip_norm else []
    return optax.chain(*steps, downhill, _OPTIMIZERS[plan.optimizer](rate))


def start_server(plan: ServerPlan, shared: PyTree) -> Server:
    return Server(shared, server_optimizer(plan, jnp.ones(())).init(shared))


def step_server(plan: ServerPlan, rate: Float[Array, ""], server: Server, mean_delta: PyTree) -> Server:
    """shared <- shared + optimiser(clipped average change)."""
    updates, state = server_optimizer(plan, rate).update(mean_delta, server.optimizer, server.shared)
    return Server(optax.apply_updates(server.shared, updates), state)

"""What the server does with the average change: an optax optimiser in which plain FedAvg is sgd at rate 1."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

# FedAvgM (Hsu et al. 2019, arXiv:1909.06335), FedAdam and FedYogi (Reddi et al. 2021, arXiv:2003.00295).
_OPTIMIZERS: dict[str, Callable] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": lambda rate: optax.adam(rate, b1=0.9, b2=0.99, eps=1e-3),
    "yogi": lambda rate: optax.yogi(rate, b1=0.9, b2=0.99, eps=1e-3),
}


class Server(NamedTuple):
    """What the server keeps between rounds: the shared variables and its optimiser's state."""

    shared: PyTree
    optimizer: PyTree


def server_optimizer(name: str, rate: Float[Array, ""]) -> optax.GradientTransformation:
    return _OPTIMIZERS[name](rate)


def start_server(name: str, shared: PyTree) -> Server:
    return Server(shared, server_optimizer(name, jnp.ones(())).init(shared))


def step_server(name: str, rate: Float[Array, ""], server: Server, mean_delta: PyTree) -> Server:
    """shared <- shared + optimiser(mean change); the change is handed over as a descent direction."""
    downhill = jax.tree.map(jnp.negative, mean_delta)
    updates, state = server_optimizer(name, rate).update(downhill, server.optimizer, server.shared)
    return Server(optax.apply_updates(server.shared, updates), state)


def weighted_sum(values: PyTree, weights: Float[Array, " clients"]) -> PyTree:
    """sum_k weights_k values_k over the leading axis of every leaf; what has weight 0 may be anything, NaN too."""

    def one(value):
        counts = (weights > 0).reshape(-1, *[1] * (value.ndim - 1))
        return jnp.tensordot(weights, jnp.where(counts, value, 0.0), axes=1)

    return jax.tree.map(one, values)

"""What a federation starts from: a method's variables, drawn from the run's seed."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import Config, MethodConfig
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.methods.base import Private, Shared

# Streams of the run's key.
SHARED, PRIVATE, ROUNDS, FINE_TUNING = range(4)
_WEIGHTS: Any = {"pacl_weight": 0.0, "cmfac_weight": 0.0, "contrastive_weight": 0.0, "temperature": 1.0}


def initial(
    config: Config,
    make: Callable[[Any, Any, PRNGKeyArray, Any], nnx.Module],
    backbone: Backbone,
    start: Any,
    clients: int,
) -> tuple[Any, PyTree, Population]:
    """The structure of a method's module, its shared variables, and the population of their private ones.

    Args:
      make: makes the module from (config.method, backbone, key, start).
      start: what prompts start from; any pytree that `make` takes.
      clients: their number.
    """
    key = jax.random.key(config.seed)
    module = make(config.method, backbone, jax.random.fold_in(key, SHARED), start)
    # A trainable variable that is neither Shared nor Private makes this split fail: nobody would own it.
    graph, shared, _ = nnx.split(module, Shared, Private)

    # Weights of the loss decide nothing here, and would compile the draw anew for each run of a sweep.
    method, privates = dataclasses.replace(config.method, **_WEIGHTS), jax.random.fold_in(key, PRIVATE)
    return graph, shared, Population(lambda ids: _draw(make, method, privates, ids, backbone, start), clients)


@partial(jax.jit, static_argnums=(0, 1))
def _draw(make, method: MethodConfig, key: PRNGKeyArray, ids, backbone: Backbone, start: Any) -> PyTree:
    """Initial private variables of some clients."""

    def one(client):
        return nnx.split(make(method, backbone, jax.random.fold_in(key, client), start), Shared, Private)[2]

    return jax.vmap(one)(ids)

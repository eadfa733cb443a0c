"""What a federation starts from: a method's variables, drawn from the run's seed."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import Config
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.methods.base import Private, Shared

# Streams of the run's key.
SHARED, PRIVATE, ROUNDS = range(3)


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

    @jax.jit
    def draw(ids, backbone, start):
        def one(client):
            own = jax.random.fold_in(jax.random.fold_in(key, PRIVATE), client)
            return nnx.split(make(config.method, backbone, own, start), Shared, Private)[2]

        return jax.vmap(one)(ids)

    return graph, shared, Population(lambda ids: draw(ids, backbone, start), clients)

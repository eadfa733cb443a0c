"""A client's training as anyone would write it: one batch after another, with a fresh optimiser."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from fedrsclip_jax.config import Config
from fedrsclip_jax.methods.base import Batch, Weights
from tests import toy


@partial(jax.jit, static_argnums=(0, 1, 2))
def step(graph, learning_rate, momentum, prompts, state, batch, frozen, weights):
    """One step of SGD; compiled once a method, as every batch has the same number of rows."""
    gradient = jax.grad(lambda p: nnx.merge(graph, *p).loss(batch, frozen, weights)[0])(prompts)
    updates, state = optax.sgd(learning_rate, momentum=momentum).update(gradient, state, prompts)
    return optax.apply_updates(prompts, updates), state


def trained(config: Config, graph, prompts, client: int, key, data, frozen, epochs: int):
    """`prompts` after some epochs over a client's images.

    The last batch is filled up with an image of somebody else, which the round never uses as filler: a method that
    reads what is masked differs from the round.
    """
    local, size, count = config.local, config.local.batch_size, toy.COUNTS[client]
    weights = Weights(jnp.float32(config.method.pacl_weight), jnp.float32(config.method.cmfac_weight))
    state = optax.sgd(local.learning_rate, momentum=local.momentum).init(prompts)
    filler = toy.rows_of((client + 1) % len(toy.COUNTS))[0]
    for epoch in range(epochs):
        epoch_key = jax.random.fold_in(key, epoch)
        order = np.argsort(np.asarray(jax.random.uniform(epoch_key, (toy.WIDTH,)))[:count])
        for place, start in enumerate(range(0, count, size)):
            rows = toy.rows_of(client)[order[start : start + size]]
            real = np.arange(size) < len(rows)
            rows = np.concatenate([rows, np.full(size - len(rows), filler)])
            views = jax.random.randint(jax.random.fold_in(epoch_key, place + 1), (size,), 0, data.features.shape[0])
            batch = Batch(data.features[views, rows], data.labels[rows], jnp.asarray(real))
            prompts, state = step(graph, local.learning_rate, local.momentum, prompts, state, batch, frozen, weights)
    return prompts

"""What one client does in one round: some epochs over its own images, on the shared and its private prompt."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import Config
from fedrsclip_jax.methods.base import Batch, Weights

Scalar = Float[Array, ""]
AnyArray = Array | np.ndarray  # on its way to the devices


class Hyper(NamedTuple):
    """Hyper-parameters that change no shape: traced scalars, so that other values compile nothing anew."""

    learning_rate: Scalar
    momentum: Scalar
    weight_decay: Scalar
    proximal_weight: Scalar
    pacl_weight: Scalar
    cmfac_weight: Scalar
    server_learning_rate: Scalar

    @classmethod
    def of(cls, config: Config) -> "Hyper":
        local, method = config.local, config.method
        values = (
            local.learning_rate,
            local.momentum,
            local.weight_decay,
            local.proximal_weight,
            method.pacl_weight,
            method.cmfac_weight,
            config.server.learning_rate,
        )
        return cls(*(jnp.asarray(value, jnp.float32) for value in values))


@dataclass(frozen=True)
class LocalPlan:
    """What fixes the shape of a client's work.

    Attributes:
      epochs: passes over the client's images.
      batch_size: images in a step; the last batch of an epoch may be smaller.
      optimizer: `sgd`, `adam` or `adamw`.
    """

    epochs: int
    batch_size: int
    optimizer: str

    @classmethod
    def of(cls, config: Config) -> "LocalPlan":
        return cls(config.local.epochs, config.local.batch_size, config.local.optimizer)

    def steps(self, count):
        """Steps of a client with `count` images (an integer or an array of them)."""
        return self.epochs * ((count + self.batch_size - 1) // self.batch_size)

    def transform(self, hyper: Hyper) -> optax.GradientTransformation:
        if self.optimizer == "sgd":
            return optax.chain(
                optax.add_decayed_weights(hyper.weight_decay),
                optax.sgd(hyper.learning_rate, momentum=hyper.momentum),
            )
        if self.optimizer == "adam":
            return optax.chain(
                optax.add_decayed_weights(hyper.weight_decay),
                optax.adam(hyper.learning_rate, b1=hyper.momentum),
            )
        return optax.adamw(hyper.learning_rate, b1=hyper.momentum, weight_decay=hyper.weight_decay)


class Dataset(NamedTuple):
    """Images as features, the same on every device.

    Attributes:
      features: unit-norm, one row an image, for each cached view; training draws a view per image and step.
      labels: classes.
    """

    features: Float[AnyArray, "views images embed"]
    labels: Int[AnyArray, " images"]


class Members(NamedTuple):
    """Some clients, with a leading axis `clients` (none inside a lane).

    Attributes:
      ids: numbers in the population; a negative one is padding.
      rows: which images a client owns, padded on the right.
      counts: how many; 0 for padding.
    """

    ids: Int[AnyArray, "*clients"]
    rows: Int[AnyArray, "*clients width"]
    counts: Int[AnyArray, "*clients"]


class Update(NamedTuple):
    """What comes out of a client's round.

    Attributes:
      delta: change of the shared variables.
      private: the private variables, which stay.
      sums: figures of the loss, summed over the images seen, and `images` itself.
    """

    delta: PyTree
    private: PyTree
    sums: dict[str, Scalar]


def train_client(
    graph: Any,
    plan: LocalPlan,
    shared: PyTree,
    private: PyTree,
    member: Members,
    data: Dataset,
    backbone: Backbone,
    hyper: Hyper,
    key: PRNGKeyArray,
) -> Update:
    """Trains one client from (shared, its private) with a fresh optimiser.

    Args:
      graph: of the method's module, split by (Shared, Private).
      key: of the round; batches depend on it and on the client's number alone, never on lane or device.

    The number of steps is the client's own: under `vmap` a loop runs as long as its longest lane, and lanes
    that are through keep their state.
    """
    transform = plan.transform(hyper)
    weights = Weights(hyper.pacl_weight, hyper.cmfac_weight)
    key = jax.random.fold_in(key, jnp.maximum(member.ids, 0))
    width = member.rows.shape[0]
    per_epoch = (member.counts + plan.batch_size - 1) // plan.batch_size
    places = jnp.arange(plan.batch_size, dtype=jnp.int32)

    def objective(prompts, batch: Batch):
        loss, figures = nnx.merge(graph, *prompts).loss(batch, backbone, weights)
        # FedProx (Li et al. 2020, arXiv:1812.06127): mu/2 |P_s - P_s of the server|^2, on the live variables.
        drift = sum(jnp.sum((a - b) ** 2) for a, b in zip(*map(jax.tree.leaves, (prompts[0], shared)), strict=True))
        return loss + 0.5 * hyper.proximal_weight * drift, {"loss": loss, **figures}

    def epoch(number, state):
        epoch_key = jax.random.fold_in(key, number)
        scores = jax.random.uniform(epoch_key, (width,))
        order = jnp.argsort(jnp.where(jnp.arange(width) < member.counts, scores, 2.0))

        def step(place, state):
            prompts, opt_state, sums = state
            at = place * plan.batch_size + places
            mask = at < member.counts
            rows = member.rows[order[jnp.minimum(at, width - 1)]]
            views = jax.random.randint(jax.random.fold_in(epoch_key, place + 1), rows.shape, 0, data.features.shape[0])
            batch = Batch(data.features[views, rows], data.labels[rows], mask)
            gradient, figures = jax.grad(objective, has_aux=True)(prompts, batch)
            updates, opt_state = transform.update(gradient, opt_state, prompts)
            seen = jnp.sum(mask).astype(jnp.float32)
            sums = {name: sums[name] + seen * value for name, value in {**figures, "images": 1.0}.items()}
            return optax.apply_updates(prompts, updates), opt_state, sums

        return jax.lax.fori_loop(0, per_epoch, step, state)

    prompts = (shared, private)
    blank = Batch(
        jnp.zeros((plan.batch_size, data.features.shape[-1]), data.features.dtype),
        jnp.zeros((plan.batch_size,), data.labels.dtype),
        jnp.zeros((plan.batch_size,), bool),
    )
    figures = jax.eval_shape(lambda p, b: objective(p, b)[1], prompts, blank)
    # Zeros that vary over devices as the client does, which the loop's carry must from its first turn on.
    zero = jnp.zeros((), jnp.float32) * member.counts.astype(jnp.float32)
    sums = dict.fromkeys((*figures, "images"), zero)
    opt_state = jax.tree.map(
        lambda x: x + member.counts.astype(x.dtype) * jnp.zeros((), x.dtype), transform.init(prompts)
    )
    prompts, _, sums = jax.lax.fori_loop(0, plan.epochs, epoch, (prompts, opt_state, sums))
    delta = jax.tree.map(jnp.subtract, prompts[0], shared)
    return Update(delta, prompts[1], sums)

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
from fedrsclip_jax.clip.precision import in_full
from fedrsclip_jax.config import Config
from fedrsclip_jax.federated.adam import scale_by_adam
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
    contrastive_weight: Scalar
    temperature: Scalar
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
            method.contrastive_weight,
            method.temperature,
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
        decay, adam = optax.add_decayed_weights(hyper.weight_decay), scale_by_adam(hyper.momentum)
        # AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) keeps the decay out of the running means.
        steps = (decay, adam) if self.optimizer == "adam" else (adam, decay)
        return optax.chain(*steps, optax.scale_by_learning_rate(hyper.learning_rate))


class Dataset(NamedTuple):
    """Images as features: all of them on every device, or on each device those of its own clients.

    Attributes:
      features: unit-norm, one row an image, for each cached view; training draws a view per image and step.
      labels: classes.
    """

    features: Float[AnyArray, "views images embed"]
    labels: Int[AnyArray, " images"]


class Members(NamedTuple):
    """Clients, one a row; inside a lane the leading axis is gone.

    Attributes:
      ids: client numbers; -1 is padding.
      rows: images of each client as rows of a `Dataset`, padded with anything.
      counts: images of each client.
    """

    ids: Int[AnyArray, "*clients"]
    rows: Int[AnyArray, "*clients width"]
    counts: Int[AnyArray, "*clients"]


class Brief(NamedTuple):
    """What a client knows at the start of a round.

    Attributes:
      key: of this client in this round.
      order: its images in the order of each epoch.
      count: of its images; the columns of `order` beyond it are padding.
    """

    key: PRNGKeyArray
    order: Int[Array, "*clients epochs width"]
    count: Int[Array, "*clients"]


class Training(NamedTuple):
    """What a client carries from one local step to the next.

    Attributes:
      prompts: shared and private variables.
      optimizer: state of its optimiser, which starts fresh each round.
      sums: of each figure, weighted by images, with `images` themselves.
      taken: steps so far.
    """

    prompts: tuple[PyTree, PyTree]
    optimizer: PyTree
    sums: dict[str, Array]
    taken: Int[Array, "*clients"]


class Client(NamedTuple):
    """What a client does in a round, as pure functions of one client; `jax.vmap` makes them lanes.

    Attributes:
      graph: of the method's module, split by (Shared, Private).
      plan: sizes of the work.
      shared: the server's shared variables at the start of the round.
    """

    graph: Any
    plan: LocalPlan
    shared: PyTree
    data: Dataset
    backbone: Backbone
    hyper: Hyper

    def brief(self, member: Members, key: PRNGKeyArray) -> Brief:
        """Shuffles the client's images for each epoch; `key` is the round's.

        The draw follows (seed, round, client) alone: it does not matter where the client works.
        """
        key = jax.random.fold_in(key, jnp.maximum(member.ids, 0))
        width = member.rows.shape[0]

        def shuffled(epoch):
            scores = jax.random.uniform(jax.random.fold_in(key, epoch), (width,))
            return member.rows[jnp.argsort(jnp.where(jnp.arange(width) < member.counts, scores, 2.0))]

        return Brief(key, jax.vmap(shuffled)(jnp.arange(self.plan.epochs)), jnp.asarray(member.counts))

    def start(self, private: PyTree) -> Training:
        prompts = (self.shared, private)
        embed = self.data.features.shape[-1]
        blank = Batch(
            jnp.zeros((self.plan.batch_size, embed), self.data.features.dtype),
            jnp.zeros((self.plan.batch_size,), self.data.labels.dtype),
            jnp.zeros((self.plan.batch_size,), bool),
        )
        names = jax.eval_shape(lambda p, b: self._objective(p, b)[1], prompts, blank)
        sums: dict[str, Array] = dict.fromkeys((*names, "images"), jnp.zeros((), jnp.float32))
        return Training(prompts, self.plan.transform(self.hyper).init(prompts), sums, jnp.zeros((), jnp.int32))

    def step(self, training: Training, brief: Brief) -> Training:
        """One step of the optimiser on the next batch; the last batch of an epoch may be smaller."""
        size, width = self.plan.batch_size, brief.order.shape[1]
        per_epoch = (brief.count + size - 1) // size
        epoch, place = training.taken // jnp.maximum(per_epoch, 1), training.taken % jnp.maximum(per_epoch, 1)
        at = place * size + jnp.arange(size, dtype=jnp.int32)
        mask = at < brief.count
        rows = brief.order[jnp.minimum(epoch, self.plan.epochs - 1), jnp.minimum(at, width - 1)]
        batch = Batch(self._look(brief.key, epoch, place, rows), self.data.labels[rows], mask)
        gradient, figures = jax.grad(self._objective, has_aux=True)(training.prompts, batch)
        transform = self.plan.transform(self.hyper)
        updates, optimizer = transform.update(gradient, training.optimizer, training.prompts)
        seen = jnp.sum(mask).astype(jnp.float32)
        sums = {name: training.sums[name] + seen * value for name, value in {**figures, "images": 1.0}.items()}
        prompts: Any = optax.apply_updates(training.prompts, updates)
        return Training(prompts, optimizer, sums, training.taken + 1)

    def delta(self, training: Training) -> PyTree:
        """The change of the shared variables, which is what is sent."""
        return jax.tree.map(jnp.subtract, training.prompts[0], self.shared)

    def _look(self, key: PRNGKeyArray, epoch, place, rows: Int[Array, " batch"]) -> Float[Array, "batch embed"]:
        """Features of images, each in a view that is drawn for this step."""
        if self.data.features.shape[0] == 1:
            return self.data.features[0, rows]
        key = jax.random.fold_in(jax.random.fold_in(key, epoch), place + 1)
        return self.data.features[jax.random.randint(key, rows.shape, 0, self.data.features.shape[0]), rows]

    def _objective(self, prompts: tuple[PyTree, PyTree], batch: Batch):
        hyper = self.hyper
        weights = Weights(hyper.pacl_weight, hyper.cmfac_weight, hyper.contrastive_weight, hyper.temperature)
        with in_full():
            loss, figures = nnx.merge(self.graph, *prompts).loss(batch, self.backbone, weights)
        # FedProx (Li et al. 2020, arXiv:1812.06127): mu/2 |P_s - P_s of the server|^2, on the live variables.
        pairs = zip(jax.tree.leaves(prompts[0]), jax.tree.leaves(self.shared), strict=True)
        drift = sum(jnp.sum((mine - servers) ** 2) for mine, servers in pairs)
        return loss + 0.5 * self.hyper.proximal_weight * drift, {"loss": loss, **figures}

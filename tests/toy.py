"""A federation small enough to be worked out by hand: a tiny random CLIP, random features, uneven clients."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.huggingface import load_clip
from fedrsclip_jax.clip.model import unit
from fedrsclip_jax.clip.tokenizer import load_tokenizer, suffixes
from fedrsclip_jax.config import Config, resolve
from fedrsclip_jax.federated.aggregate import start_server
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan, Members
from fedrsclip_jax.federated.cohort import lay_out
from fedrsclip_jax.federated.round import RoundPlan, make_mesh, replicate, run_round, spread
from fedrsclip_jax.methods.base import Batch, Private, Shared, Weights

CLASSES = ("forest", "storage tank", "river")
COUNTS = (7, 3, 12, 5, 1, 9, 4, 6, 11, 2)  # images of each client: ragged, one with a single image
WIDTH = 16


def backbone(folder: Path, class_position: str = "end") -> Backbone:
    clip, config = load_clip(folder)
    zero_shot = unit(jax.random.normal(jax.random.key(9), (len(CLASSES), config.embed)))
    names = suffixes(load_tokenizer(folder, config), CLASSES, config, 16)
    return Backbone(clip.text, jnp.exp(clip.logit_scale[...]), names, zero_shot, class_position)


def dataset(views: int = 1, embed: int = 16) -> Dataset:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(views, sum(COUNTS), embed)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    return Dataset(jnp.asarray(features), jnp.asarray(rng.integers(0, len(CLASSES), sum(COUNTS)), jnp.int32))


def rows_of(client: int) -> np.ndarray:
    return np.arange(sum(COUNTS[:client]), sum(COUNTS[: client + 1]))


def members(ids: np.ndarray, width: int = WIDTH, filler: int = 0) -> Members:
    rows = np.full((len(ids), width), filler, np.int32)
    counts = np.zeros(len(ids), np.int32)
    for slot, client in enumerate(ids):
        if client >= 0:
            counts[slot] = COUNTS[client]
            rows[slot, : COUNTS[client]] = rows_of(client)
    return Members(jnp.asarray(ids, jnp.int32), jnp.asarray(rows), jnp.asarray(counts))


def settings(**overrides) -> Config:
    base = {"local.learning_rate": "0.1", "local.batch_size": "4", "method.context_tokens": "4"}
    return resolve(Config, {}, list({**base, **overrides}.items()))


class Game:
    """A method, its initial variables, and rounds of it on some devices and lanes."""

    def __init__(self, make, config: Config, frozen: Backbone, data: Dataset, *, devices: int = 1, lanes: int = 1):
        self.config, self.frozen, self.data = config, frozen, data
        self.key = jax.random.key(3)
        self.make = make
        self.graph, self.shared, _ = nnx.split(make(jax.random.key(1)), Shared, Private)
        self.plan = RoundPlan(self.graph, LocalPlan.of(config), make_mesh(devices), lanes, config.server.optimizer)
        self.server = start_server(config.server.optimizer, self.shared)
        self.kept = {}

    def private(self, client: int):
        if client not in self.kept:
            key = jax.random.fold_in(jax.random.key(2), max(int(client), 0))
            self.kept[client] = nnx.split(self.make(key), Shared, Private)[2]
        return self.kept[client]

    def slots(self, ids=None) -> np.ndarray:
        ids = np.arange(len(COUNTS)) if ids is None else np.asarray(ids)
        steps = self.plan.local.steps(np.asarray(COUNTS)[ids])
        return lay_out(ids, steps, self.plan.mesh.size, self.plan.lanes).ids

    def arguments(self, number: int = 1, ids=None, slots=None, answering=None, table: Members | None = None):
        slots = self.slots(ids) if slots is None else np.asarray(slots)
        private = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.private(int(k)) for k in slots))
        answering = slots >= 0 if answering is None else answering
        table = members(slots) if table is None else table
        mesh = self.plan.mesh
        server = jax.tree.map(jnp.copy, self.server)
        same = replicate(mesh, (self.data, self.frozen, Hyper.of(self.config), self.key, jnp.asarray(number)))
        return (self.plan, replicate(mesh, server), *spread(mesh, (private, table, jnp.asarray(answering))), *same)

    def round(self, number: int = 1, ids=None, slots=None, answering=None, table: Members | None = None):
        slots = self.slots(ids) if slots is None else np.asarray(slots)
        self.server, private, figures = run_round(*self.arguments(number, None, slots, answering, table))
        for slot, client in enumerate(slots):
            if client >= 0:
                self.kept[int(client)] = jax.tree.map(lambda leaf, s=slot: leaf[s], private)
        return {name: float(value) for name, value in figures.items()}


class Slope(nnx.Module):
    """A method of known gradients: loss = -mean over the batch of (shared + private) . features.

    One client with constant features a takes steps of exactly learning_rate x a.
    """

    def __init__(self, key, size: int = 16):
        self.shared = Shared(jnp.zeros(size))
        self.private = Private(jnp.zeros(size))

    def loss(self, batch: Batch, backbone: Backbone, weights: Weights):
        rows = jnp.where(batch.mask[:, None], batch.features, 0.0)
        mean = jnp.sum(rows, axis=0) / jnp.maximum(jnp.sum(batch.mask, dtype=jnp.float32), 1)
        return -jnp.sum((self.shared[...] + self.private[...]) * mean), {}

    def global_logits(self, features, backbone: Backbone):
        return jnp.zeros((features.shape[0], len(CLASSES)))

    personal_logits = global_logits

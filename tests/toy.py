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
from fedrsclip_jax.federated.aggregate import ServerPlan, start_server
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan, Members
from fedrsclip_jax.federated.cohort import lay_out
from fedrsclip_jax.federated.mesh import SPLIT_BY_ROUND, make_mesh, replicate, spread
from fedrsclip_jax.federated.round import RoundPlan, Schedule, run_rounds
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import Batch, Private, Shared, Weights, needs_patches

CLASSES = ("forest", "storage tank", "river")
COUNTS = (7, 3, 12, 5, 1, 9, 4, 6, 11, 2)  # images of each client: ragged, one with a single image
WIDTH = 16


def backbone(folder: Path, class_position: str = "end", dtype: str = "float32") -> Backbone:
    clip, config = load_clip(folder, dtype)
    zero_shot = unit(jax.random.normal(jax.random.key(9), (len(CLASSES), config.embed)))
    names = suffixes(load_tokenizer(folder, config), CLASSES, config, 16)
    return Backbone(clip.text, jnp.exp(clip.logit_scale[...]), names, zero_shot, class_position)


def dataset(views: int = 1, embed: int = 16, patches: int = 0) -> Dataset:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(views, sum(COUNTS), 1 + patches, embed)).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    features = features.reshape(views, sum(COUNTS), -1)
    return Dataset(jnp.asarray(features), jnp.asarray(rng.integers(0, len(CLASSES), sum(COUNTS)), jnp.int32))


def dataset_for(name: str, views: int = 1) -> Dataset:
    """Features that a method reads: with four patches an image where it needs them."""
    return dataset(views, patches=4 if needs_patches(find_method(name)) else 0)


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


def schedule(slots: np.ndarray, steps: np.ndarray, devices: int, lanes: int, answering=None) -> Schedule:
    """One round of clients who stand in `slots`, -1 where nobody does, an equal number of slots to a device."""
    slots = slots.reshape(devices, -1)
    tables = [lay_out(np.where(own >= 0, steps[own], 0), 1, lanes) for own in slots]
    turns = max(table.turns.shape[1] for table in tables)
    padded = [np.pad(t.turns[0], ((0, turns - t.turns.shape[1]), (0, 0)), constant_values=-1) for t in tables]
    cohort = np.sort(slots[slots >= 0])
    return Schedule(
        slots=np.where(slots >= 0, np.arange(slots.shape[1]), -1).astype(np.int32).reshape(1, -1),
        places=np.where(slots >= 0, np.searchsorted(cohort, slots), -1).astype(np.int32).reshape(1, -1),
        answering=(slots.reshape(1, -1) >= 0) if answering is None else np.asarray(answering)[None],
        turns=np.concatenate(padded)[None],
        length=np.concatenate([table.length for table in tables])[None],
    )


class Game:
    """A method, its initial variables, and rounds of it on some devices and lanes."""

    def __init__(
        self,
        make,
        config: Config,
        frozen: Backbone,
        data: Dataset,
        *,
        devices: int = 1,
        lanes: int = 1,
        cohort: int = len(COUNTS),
        ordered: bool = False,
    ):
        self.config, self.frozen, self.data, self.lanes = config, frozen, data, lanes
        self.key = jax.random.key(3)
        self.make = make
        self.graph, self.shared, _ = nnx.split(make(jax.random.key(1)), Shared, Private)
        self.plan = RoundPlan(
            self.graph, LocalPlan.of(config), make_mesh(devices), ServerPlan.of(config), cohort, ordered
        )
        self.server = start_server(ServerPlan.of(config), self.shared)
        self.kept = {}

    def private(self, client: int):
        if client not in self.kept:
            key = jax.random.fold_in(jax.random.key(2), max(int(client), 0))
            self.kept[client] = nnx.split(self.make(key), Shared, Private)[2]
        return self.kept[client]

    def slots(self, ids=None) -> np.ndarray:
        ids = np.arange(len(COUNTS)) if ids is None else np.asarray(ids)
        table = lay_out(self.plan.local.steps(np.asarray(COUNTS)[ids]), self.plan.mesh.size, self.lanes)
        return np.where(table.members >= 0, ids[table.members], -1).reshape(-1)

    def arguments(self, number: int = 1, ids=None, slots=None, answering=None, table: Members | None = None):
        slots = self.slots(ids) if slots is None else np.asarray(slots)
        private = jax.tree.map(lambda *leaves: jnp.stack(leaves), *(self.private(int(k)) for k in slots))
        table = members(slots) if table is None else table
        mesh = self.plan.mesh
        steps = self.plan.local.steps(np.asarray(COUNTS))
        plan = schedule(slots, steps, mesh.size, self.lanes, answering)
        server = jax.tree.map(jnp.copy, self.server)
        same = replicate(
            mesh, (self.data, self.frozen, Hyper.of(self.config), self.key, jnp.asarray(number), jnp.asarray(1))
        )
        split = (*spread(mesh, (private, table)), spread(mesh, plan, SPLIT_BY_ROUND))
        return (self.plan, replicate(mesh, server), *split, *same)

    def round(self, number: int = 1, ids=None, slots=None, answering=None, table: Members | None = None):
        slots = self.slots(ids) if slots is None else np.asarray(slots)
        self.server, private, self.outcome = run_rounds(*self.arguments(number, None, slots, answering, table))
        for slot, client in enumerate(slots):
            if client >= 0:
                self.kept[int(client)] = jax.tree.map(lambda leaf, s=slot: leaf[s], private)
        return {name: float(values[0]) for name, values in self.outcome.figures.items()}


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

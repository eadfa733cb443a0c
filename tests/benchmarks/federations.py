"""Federations of FedRSCLIP to measure: random features, real text towers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedrsclip_jax.clip import huggingface, tokenizer
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.model import CLIPConfig, unit
from fedrsclip_jax.clip.text import TextTower
from fedrsclip_jax.clip.transformer import TowerConfig
from fedrsclip_jax.config import Config, resolve
from fedrsclip_jax.data.clients import Clients, PartitionedClients
from fedrsclip_jax.data.partition import partition
from fedrsclip_jax.data.virtual import VirtualClients, virtual_clients
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.engine import Engine
from fedrsclip_jax.methods import find_method

# The 21 classes of UC Merced (Yang and Newsam 2010).
CLASSES = [
    "agricultural",
    "airplane",
    "baseball diamond",
    "beach",
    "buildings",
    "chaparral",
    "dense residential",
    "forest",
    "freeway",
    "golf course",
    "harbor",
    "intersection",
    "medium residential",
    "mobile home park",
    "overpass",
    "parking lot",
    "river",
    "runway",
    "sparse residential",
    "storage tanks",
    "tennis court",
]


def settings(**keys: object) -> Config:
    """A configuration of some keys, written with `__` for the dots."""
    return resolve(Config, {}, [(name.replace("__", "."), str(value)) for name, value in keys.items()])


def labels_of(images: int) -> np.ndarray:
    return np.arange(images, dtype=np.int32) % len(CLASSES)


def dirichlet(images: int, clients: int, alpha: float, seed: int = 0) -> PartitionedClients:
    """A partition of all images, four fifths of them for training."""
    train, test = np.split(np.arange(images), [images * 4 // 5])
    kinds = np.zeros(images, np.int32)
    return PartitionedClients(
        partition(
            "dirichlet",
            labels_of(images),
            kinds,
            train,
            test,
            clients=clients,
            alpha=alpha,
            classes_per_client=2,
            min_examples=8,
            seed=seed,
        )
    )


def virtual(images: int, clients: int, each: int = 32) -> VirtualClients:
    train, test = np.split(np.arange(images), [images * 4 // 5])
    return virtual_clients(labels_of(images), train, test, clients=clients, alpha=0.1, examples_per_client=each, seed=0)


def tiny() -> tuple[Backbone, int]:
    """The text side of the embedded CLIP, and its joint embedding."""
    clip, config = huggingface.load_clip(huggingface.TINY)
    words = tokenizer.load_tokenizer(huggingface.TINY, config)
    return _backbone(clip.text, tokenizer.suffixes(words, CLASSES, config, 16), config.embed), config.embed


def base16(layers: int = 12) -> tuple[Backbone, int]:
    """A text side of ViT-B/16's size with random weights, and class names in the embedded CLIP's tokens."""
    _, small = huggingface.load_clip(huggingface.TINY)
    words = tokenizer.load_tokenizer(huggingface.TINY, small)
    tower = TowerConfig(width=512, layers=layers, heads=8, mlp_width=2048)
    config = CLIPConfig(tower, tower, 512, 49408, 77, 224, 16, small.sos_id, small.eos_id)
    text = TextTower(
        tower,
        vocabulary=config.vocabulary,
        positions=config.positions,
        embed=config.embed,
        sos_id=config.sos_id,
        eos_id=config.eos_id,
        rngs=nnx.Rngs(0),
    )
    return _backbone(text, tokenizer.suffixes(words, CLASSES, config, 16), config.embed), config.embed


def engine(config: Config, clients: Clients, images: int, frozen: tuple[Backbone, int]) -> Engine:
    backbone, embed = frozen
    features = np.random.default_rng(0).standard_normal((1, images, embed), np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    data = Dataset(features, labels_of(images))
    return Engine(
        config,
        find_method(config.method.name),
        backbone,
        None,
        clients,
        supply=lambda rows: Dataset(features[:, rows], data.labels[rows]),
        resident=lambda: data,
    )


def _backbone(text: TextTower, suffixes, embed: int) -> Backbone:
    zero_shot = unit(jax.random.normal(jax.random.key(0), (len(CLASSES), embed)))
    return Backbone(text, jnp.asarray(100.0), suffixes, zero_shot)


class Even(Clients):
    """Client k owns images k * each to (k + 1) * each - 1."""

    def __init__(self, number: int, each: int):
        self._number, self._each = number, each

    @property
    def num_clients(self) -> int:
        return self._number

    @property
    def pooled(self) -> np.ndarray:
        return np.zeros(0, np.int32)

    def longest(self, split: str) -> int:
        return self._each

    def most_images(self, clients: int, split: str) -> int:
        return min(clients, self._number) * self._each

    def digest(self) -> str:
        return str(self._number)

    def save(self, path: str | Path) -> None:
        raise NotImplementedError("these clients are a rule, and nothing to save")

    def saved_as(self, path: str | Path) -> bool:
        return False

    def _worth_scoring(self, most, cohorts):
        return np.arange(self._number), most

    def _counts(self, ids: np.ndarray, split: str) -> np.ndarray:
        return np.full(len(ids), self._each)

    def _images(self, ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        return self._counts(ids, split), (ids[:, None] * self._each + np.arange(self._each)).reshape(-1)


class Rounds:
    """Some rounds of an engine at each call, going on where the last call stopped."""

    def __init__(self, engine: Engine, each: int):
        self.engine, self.each, self.number = engine, each, 0

    def __call__(self) -> None:
        left = self.each
        while left:
            done = self.engine.advance(self.number + 1, left)
            self.number, left = self.number + len(done), left - len(done)

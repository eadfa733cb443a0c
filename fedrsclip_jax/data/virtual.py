"""A population without a partition: what a client owns follows from its number alone, and nothing is kept for it.

This simulates scale. It is no partition: different clients may own the same image, and with more clients than
images they must. The two sides of the split are never mixed.
"""

import dataclasses
import hashlib
import math
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64

from fedrsclip_jax.config import MAX_CLIENTS
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.partition import load_arrays, save_arrays
from fedrsclip_jax.errors import InputError

# Where nobody says how many. Of a share p of a population, a sample of 1,000 shows p within 1.6 points (one deviation).
MOST_SCORED = 1_000
MOST_PARTICIPANTS = 10_000
_PARTICIPANTS = 0x9A27
_STREAM = 0x71C7  # keeps this use of a seed apart from every other
_EVEN = 1e9  # a larger alpha makes no difference, and would overflow
_FIELDS = ("size", "alpha", "train_each", "test_each", "seed", "train", "train_offsets", "test", "test_offsets")


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class VirtualClients(Clients):
    """Clients whose images are a pure function of (seed, client).

    Client k draws class proportions from Dirichlet(alpha), as in Hsu et al. 2019 (arXiv:1909.06335), then the
    classes of its training images from these, then different images of each class. A class that the client uses
    up leaves the rest to its other classes. Its test images have the proportions that its training images came to
    have, rounded by largest remainder, and are fewer where a class has no more.

    Attributes:
        size: number of clients.
        alpha: concentration; small is uneven.
        train_each: training images of every client.
        test_each: test images that a client has at most, at least one.
        seed: a non-negative integer.
        train, test: the two sides of the split, class after class, as positions in the source.
        train_offsets, test_offsets: the images of class c are `train[train_offsets[c]:train_offsets[c + 1]]`.
    """

    size: int
    alpha: float
    train_each: int
    test_each: int
    seed: int
    train: Int32[np.ndarray, "train"]
    train_offsets: Int64[np.ndarray, "bounds"]
    test: Int32[np.ndarray, "test"]
    test_offsets: Int64[np.ndarray, "bounds"]

    def __repr__(self) -> str:
        return f"{self.size:,} virtual clients, each with {self.train_each} images to train on, which they share"

    @property
    def num_clients(self) -> int:
        return self.size

    @property
    def pooled(self) -> Int32[np.ndarray, "test"]:
        return self.test

    def longest(self, split: str) -> int:
        return self.train_each if split == "train" else self.test_each

    def most_images(self, clients: int, split: str) -> int:
        return min(clients, self.size) * self.longest(split)

    def digest(self) -> str:
        total = hashlib.sha256(b"virtual:")
        for name in _FIELDS:
            values = np.atleast_1d(getattr(self, name))
            kind = "<f8" if name == "alpha" else "<i8"
            total.update(f"{name}:{len(values)}:".encode() + np.ascontiguousarray(values, kind).tobytes())
        return total.hexdigest()

    def save(self, path: str | Path) -> None:
        save_arrays(path, {name: np.asarray(getattr(self, name)) for name in _FIELDS})

    def saved_as(self, path: str | Path) -> bool:
        return self.load(path).digest() == self.digest()

    @classmethod
    def load(cls, path: str | Path) -> "VirtualClients":
        """Reads what `save` wrote; `InputError` where that is missing or damaged."""
        size, alpha, train_each, test_each, seed, *sides = load_arrays(path, _FIELDS)
        return cls(int(size), float(alpha), int(train_each), int(test_each), int(seed), *sides)

    def participants(self, took_part, most, seed):
        """Hardly any of a sample of a huge population has taken part; so some of those that have are scored, too."""
        most = most or MOST_PARTICIPANTS
        if len(took_part) <= most:
            return took_part
        return np.sort(np.random.default_rng((seed, _PARTICIPANTS)).choice(took_part, most, replace=False))

    def _worth_scoring(self, most):
        return self.size, most or MOST_SCORED

    def _counts(self, ids, split):
        if split == "train":
            return np.full(len(ids), self.train_each, np.int64)
        return self._tables(ids)[1].sum(axis=1)

    def _images(self, ids, split):
        train, test, lots = self._tables(ids)
        if split == "train":
            return train.sum(axis=1), _pick(self.train, self.train_offsets, train, lots[:, : self.train_each])
        return test.sum(axis=1), _pick(self.test, self.test_offsets, test, lots[:, self.train_each :])

    def _tables(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Training and test images of each client and class, and a lot in [0, 1) for each image of a client."""
        sizes = np.diff(self.train_offsets)
        counts = np.empty((len(ids), len(sizes)), np.int64)
        lots = np.empty((len(ids), self.train_each + self.test_each))
        for row, client in enumerate(ids):
            rng = np.random.default_rng((self.seed, _STREAM, client))
            counts[row] = _draw_classes(self.alpha, self.train_each, sizes, rng)
            lots[row] = rng.random(lots.shape[1])
        return counts, _follow(counts, self.test_each, np.diff(self.test_offsets)), lots


def virtual_clients(
    labels: Int[np.ndarray, "images"],
    train_index: Int[np.ndarray, "train"],
    test_index: Int[np.ndarray, "test"],
    *,
    clients: int,
    alpha: float,
    examples_per_client: int,
    seed: int,
) -> VirtualClients:
    """A population of any size over the two sides of a split; see `VirtualClients`.

    A client has as many test images to its training images as the sides of the split have.

    Args:
        labels: class of each image of the source.
        train_index, test_index: the two sides, as positions in the source; both hold images of every class.
        clients: 1 to 2**31 - 1.
        alpha: concentration of the clients' class proportions.
        examples_per_client: training images of each client.
        seed: a non-negative integer.

    Raises:
        InputError: a value out of range.
    """
    if not 1 <= clients <= MAX_CLIENTS:
        raise InputError(f"partition.clients={clients} is out of range; give 1 to {MAX_CLIENTS}")
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"partition.alpha={alpha} is out of range; give a finite number above 0, such as 0.1")
    if not 1 <= examples_per_client <= len(train_index):
        raise InputError(
            f"partition.examples_per_client={examples_per_client} is out of range; a client owns an image once, and "
            f"there are {len(train_index)} training images: give 1 to {len(train_index)}"
        )
    present = np.unique(labels[train_index])

    def by_class(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = index[np.lexsort((index, labels[index]))].astype(np.int32)
        bounds = np.searchsorted(labels[order], [*present, present[-1] + 1])
        return order, bounds.astype(np.int64)

    test_each = max(1, round(examples_per_client * len(test_index) / len(train_index)))
    return VirtualClients(
        clients, alpha, examples_per_client, test_each, seed, *by_class(train_index), *by_class(test_index)
    )


def _draw_classes(alpha: float, total: int, room: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How many of `total` images a client has of each class; what a full class cannot take goes to its others."""
    shares = rng.standard_gamma(min(alpha, _EVEN), len(room))
    if not shares.any():  # so small an alpha that all shares underflow: its limit is a single class
        shares = np.eye(len(room))[rng.integers(len(room))]
    counts = rng.multinomial(total, shares / shares.sum())
    while (counts > room).any():
        counts = np.minimum(counts, room)
        weights = np.where(counts < room, shares, 0.0)
        if weights.sum() == 0:  # all classes of the client are used up
            weights = (room - counts).astype(float)
        counts += rng.multinomial(total - counts.sum(), weights / weights.sum())
    return counts


def _follow(counts: np.ndarray, total: int, room: np.ndarray) -> np.ndarray:
    """Shares of `total` in proportion to each row of `counts`, by largest remainder, within `room`."""
    quota = total * counts / counts.sum(axis=1, keepdims=True)
    # 9 digits: quotas that are equal in exact arithmetic must not be told apart by their rounding errors.
    shares = np.floor(quota.round(9)).astype(np.int64)
    rank = np.argsort(np.argsort(-(quota - shares).round(9), axis=1, kind="stable"), axis=1)
    shares += rank < total - shares.sum(axis=1, keepdims=True)
    return np.minimum(shares, room)


def _pick(pool: np.ndarray, offsets: np.ndarray, counts: np.ndarray, lots: np.ndarray) -> np.ndarray:
    """Different images of each class for each client, client after client.

    Floyd's sampling (Bentley and Floyd 1987, doi:10.1145/30401.315746): an image takes one lot, however many its
    class holds.

    Args:
        pool, offsets: images, class after class.
        counts: [clients, classes] images wanted.
        lots: [clients, images] uniform in [0, 1), of which each client uses as many as it wants images.
    """
    wanted = counts.reshape(-1)
    cell = np.repeat(np.arange(len(wanted)), wanted)  # a class of a client
    group = cell % counts.shape[1]
    last = np.diff(offsets)[group] - np.repeat(np.cumsum(wanted), wanted) + np.arange(len(cell))
    used = np.arange(lots.shape[1]) < counts.sum(axis=1)[:, None]
    drawn = np.floor(lots[used] * (last + 1)).astype(np.int64)
    base = cell * len(pool)  # keeps the places of different cells apart
    taken: set[int] = set()
    for at, (first, second) in enumerate(zip((base + drawn).tolist(), (base + last).tolist(), strict=True)):
        if first in taken:
            drawn[at] = last[at]
            first = second
        taken.add(first)
    return pool[offsets[group] + drawn]

"""The clients' images as rectangular index tables, which a device can use."""

import abc
import dataclasses
import hashlib
from pathlib import Path

import numpy as np
from jaxtyping import Int, Int32, Int64

from fedrsclip_jax.config import Config
from fedrsclip_jax.data.partition import Partition, save_arrays

SPLITS = ("train", "test")
_SCORED = 0x5C0E  # keeps this use of a seed apart from every other
_UNSEEN = "unseen_"  # in front of the names of the unseen clients' arrays


class Clients(abc.ABC):
    """Who owns which image, by client number; what is asked of some clients costs by these, not by all.

    Attributes:
        num_clients: clients are numbered from 0 to num_clients - 1.
        pooled: all test images of these clients, as positions in the source.
        unseen: further clients, numbered from 0 by themselves, who never train and own none of these images; None
            where there are none.
        names: what people call the clients, by number; empty where they are called by their numbers alone.
    """

    unseen: "Clients | None" = None
    names: tuple[str, ...] = ()

    @property
    @abc.abstractmethod
    def num_clients(self) -> int: ...

    @property
    @abc.abstractmethod
    def pooled(self) -> Int32[np.ndarray, "test"]: ...

    @abc.abstractmethod
    def longest(self, split: str) -> int:
        """No client has more images than that in the split, `train` or `test`."""

    @abc.abstractmethod
    def most_images(self, clients: int, split: str) -> int:
        """No so many different clients have more images together than that; `clients` is at least 1."""

    @abc.abstractmethod
    def digest(self) -> str:
        """sha256 of all that says who owns which image, equal on every platform."""

    @abc.abstractmethod
    def save(self, path: str | Path) -> None:
        """Writes an npz file, or nothing at all should it be interrupted."""

    @abc.abstractmethod
    def saved_as(self, path: str | Path) -> bool:
        """Whether the file, which `save` wrote, holds these clients; `InputError` where it is missing or damaged."""

    @abc.abstractmethod
    def _worth_scoring(self, most: int) -> tuple[Int[np.ndarray, "clients"] | int, int]:
        """Who may be scored, ascending, or how many from client 0 on; and how many of them at most, 0 for all."""

    @abc.abstractmethod
    def _counts(self, ids: Int64[np.ndarray, "clients"], split: str) -> Int64[np.ndarray, "clients"]:
        """Images of clients that exist."""

    @abc.abstractmethod
    def _images(
        self, ids: Int64[np.ndarray, "clients"], split: str
    ) -> tuple[Int64[np.ndarray, "clients"], Int[np.ndarray, "images"]]:
        """Counts of clients that exist, and their images, one client after another, as positions in the source."""

    def counts(self, ids: Int[np.ndarray, "cohort"], split: str) -> Int64[np.ndarray, "cohort"]:
        """Images of each of some clients; -1 is a padding client, which has none.

        Raises:
            ValueError: an unknown split, or an id out of range.
        """
        ids, real = self._checked(ids, split)
        counts = np.zeros(len(ids), np.int64)
        counts[real] = self._counts(ids[real], split)
        return counts

    def scored(self, most: int, seed: int) -> Int[np.ndarray, "scored"]:
        """Whose models are scored, ascending: all that are worth it, or a seeded sample of them.

        They are the same in every round of a run, however many rounds it has: only so is a curve over rounds about
        training, and not about who happens to be looked at.

        Args:
            most: clients in the sample; 0 leaves that to the kind of clients.
            seed: a non-negative integer.
        """
        eligible, most = self._worth_scoring(most)
        there = eligible if isinstance(eligible, int) else len(eligible)
        if most == 0 or most >= there:
            return np.arange(there) if isinstance(eligible, int) else eligible
        return np.sort(np.random.default_rng((seed, _SCORED)).choice(eligible, most, replace=False))

    def participants(
        self, took_part: Int[np.ndarray, "clients"], most: int, seed: int
    ) -> Int[np.ndarray, "participants"] | None:
        """Who is scored beside `scored`, ascending: of clients that took part all, or a seeded sample.

        Args:
            took_part: so far, ascending.
            most, seed: as of `scored`.

        Returns:
            None where the scored clients tell enough: everyone, or a sample of no huge population.
        """
        return None

    def width(self, split: str) -> int:
        """A width for `padded` that other seeds' clients are likely to share, and with it what is compiled."""
        return 1 << max(self.longest(split) - 1, 1).bit_length()

    def padded(
        self, ids: Int[np.ndarray, "cohort"], split: str, width: int | None = None
    ) -> tuple[Int32[np.ndarray, "cohort width"], Int32[np.ndarray, "cohort"]]:
        """The images of some clients, one row a client, filled up with zeros.

        Args:
            ids: clients, from 0; -1 is a padding client, which has no images.
            split: `train` or `test`.
            width: columns of the table; by default `longest`, so that every cohort has one shape and nothing
                recompiles.

        Returns:
            Positions in the source, and how many of each row are valid.

        Raises:
            ValueError: an unknown split, an id out of range, or a client with more than `width` images.
        """
        ids, real = self._checked(ids, split)
        counts = np.zeros(len(ids), np.int64)
        counts[real], images = self._images(ids[real], split)
        width = self.longest(split) if width is None else width
        if counts.size and counts.max() > width:
            worst = int(ids[counts.argmax()])
            raise ValueError(f"width={width} is less than the {counts.max()} {split} images of client {worst}")
        table = np.zeros((len(ids), width), np.int32)
        table[np.arange(width) < counts[:, None]] = images
        return table, counts.astype(np.int32)

    def _checked(self, ids: np.ndarray, split: str) -> tuple[np.ndarray, np.ndarray]:
        """The ids as int64, and which of them are no padding."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r} is not known; use 'train' or 'test'")
        ids = np.asarray(ids).astype(np.int64)
        if ids.size and (ids.min() < -1 or ids.max() >= self.num_clients):
            raise ValueError(
                f"client ids {ids.min()} to {ids.max()} are out of range; use 0 to {self.num_clients - 1}, "
                "or -1 for padding"
            )
        return ids, ids >= 0


@dataclasses.dataclass(frozen=True, repr=False)
class PartitionedClients(Clients):
    """Clients of a partition: each image has one owner, and all is held in memory.

    Attributes:
        partition: who owns which image.
        made_by: the configuration that says how they were drawn, where that is kept.
        names: see `Clients`; they change nothing that is computed.
    """

    partition: Partition
    unseen: "PartitionedClients | None" = None
    made_by: Config | None = dataclasses.field(default=None, compare=False)
    names: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def __repr__(self) -> str:
        train, test = len(self.partition.train_order), len(self.partition.test_order)
        further = "" if self.unseen is None else f", and {self.unseen.num_clients} that never train"
        return f"{self.num_clients} clients with {train} images to train on and {test} to be scored on{further}"

    @classmethod
    def holding_out(cls, owners: Partition, held_out: int) -> "PartitionedClients":
        """All owners of a partition but the last `held_out`, which are `unseen`."""
        last = owners.num_clients - held_out
        unseen = cls(owners.between(last, owners.num_clients)) if held_out else None
        return cls(owners.between(0, last) if held_out else owners, unseen)

    @property
    def num_clients(self) -> int:
        return self.partition.num_clients

    @property
    def pooled(self) -> Int32[np.ndarray, "test"]:
        return self.partition.test_order

    def longest(self, split: str) -> int:
        return int(np.diff(self._offsets(split)).max())

    def most_images(self, clients: int, split: str) -> int:
        return int(np.sort(np.diff(self._offsets(split)))[-clients:].sum())

    def digest(self) -> str:
        own = self.partition.digest()
        return own if self.unseen is None else hashlib.sha256(f"{own}:{self.unseen.digest()}".encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        others = {} if self.unseen is None else self.unseen.partition.arrays(_UNSEEN)
        save_arrays(path, self.partition.arrays() | others)

    def saved_as(self, path: str | Path) -> bool:
        return self.load(path, unseen=self.unseen is not None).digest() == self.digest()

    @classmethod
    def load(cls, path: str | Path, *, unseen: bool = False) -> "PartitionedClients":
        """Reads what `save` wrote, with the unseen clients; `InputError` where that is missing or damaged."""
        return cls(Partition.load(path), cls(Partition.load(path, _UNSEEN)) if unseen else None)

    def _worth_scoring(self, most):
        """Everyone; of a sample, those who have a test image."""
        everyone = np.arange(self.num_clients)
        sampled = 0 < most < len(everyone)
        return everyone[self._counts(everyone, "test") > 0] if sampled else everyone, most

    def _offsets(self, split: str) -> np.ndarray:
        return self.partition.train_offsets if split == "train" else self.partition.test_offsets

    def _counts(self, ids, split):
        offsets = self._offsets(split)
        return offsets[ids + 1] - offsets[ids]

    def _images(self, ids, split):
        order = self.partition.train_order if split == "train" else self.partition.test_order
        counts = self._counts(ids, split)
        first = np.repeat(self._offsets(split)[ids] - np.cumsum(counts) + counts, counts)
        return counts, order[first + np.arange(len(first))]

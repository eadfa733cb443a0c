"""The clients' images as rectangular index tables, which a device can use."""

import dataclasses

import numpy as np
from jaxtyping import Int, Int32, Int64

from fedrsclip_jax.data.partition import Partition


@dataclasses.dataclass(frozen=True)
class Clients:
    """A partition as padded tables of positions in the source.

    Attributes:
        partition: who owns which image.
    """

    partition: Partition

    @property
    def num_clients(self) -> int:
        return self.partition.num_clients

    @property
    def train_counts(self) -> Int64[np.ndarray, "clients"]:
        """Training images of each client."""
        return np.diff(self.partition.train_offsets)

    @property
    def test_counts(self) -> Int64[np.ndarray, "clients"]:
        """Test images of each client."""
        return np.diff(self.partition.test_offsets)

    @property
    def max_train(self) -> int:
        return int(self.train_counts.max())

    @property
    def max_test(self) -> int:
        return int(self.test_counts.max())

    def width(self, split: str) -> int:
        """A width for `padded` that other seeds' partitions are likely to share, and with it what is compiled."""
        longest = self.max_train if split == "train" else self.max_test
        return 1 << max(longest - 1, 1).bit_length()

    def padded(
        self, ids: Int[np.ndarray, "cohort"], split: str, width: int | None = None
    ) -> tuple[Int32[np.ndarray, "cohort width"], Int32[np.ndarray, "cohort"]]:
        """The images of some clients, one row a client, filled up with zeros.

        Args:
            ids: clients, from 0; -1 is a padding client, which has no images.
            split: `train` or `test`.
            width: columns of the table; by default those of the largest of all clients, so that every cohort
                has one shape and nothing recompiles.

        Returns:
            Positions in the source, and how many of each row are valid.

        Raises:
            ValueError: an unknown split, an id out of range, or a client with more than `width` images.
        """
        if split not in ("train", "test"):
            raise ValueError(f"split={split!r} is not known; use 'train' or 'test'")
        ids = np.asarray(ids)
        if ids.size and (ids.min() < -1 or ids.max() >= self.num_clients):
            raise ValueError(
                f"client ids {ids.min()} to {ids.max()} are out of range; use 0 to {self.num_clients - 1}, "
                "or -1 for padding"
            )
        order = getattr(self.partition, f"{split}_order")
        offsets = getattr(self.partition, f"{split}_offsets")
        sizes = np.diff(offsets)
        counts = np.where(ids >= 0, sizes[ids], 0)
        width = int(sizes.max()) if width is None else width
        if counts.size and counts.max() > width:
            worst = int(ids[counts.argmax()])
            raise ValueError(f"width={width} is less than the {counts.max()} {split} images of client {worst}")
        columns = np.arange(width)
        valid = columns < counts[:, None]
        table = np.zeros((len(ids), width), np.int32)
        table[valid] = order[(offsets[ids][:, None] + columns)[valid]]
        return table, counts.astype(np.int32)

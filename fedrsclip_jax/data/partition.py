"""Who owns which image: the partition of the training and test images among clients.

Every kind works in two steps: an integer table `counts[client, class]` says how many training images a client
gets of each class; then each class is shuffled and dealt out by that table. Where clients differ in their
classes, the test images follow the *realised* training counts, so that both have the same class proportions.
"""

import dataclasses
import difflib
import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int32, Int64

from fedrsclip_jax import formats
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.files import replace

KINDS = ("iid", "dirichlet", "classes", "domain")
_STREAM = 0x9A27  # keeps this use of a seed apart from every other
_REDRAWS = 100
_FIELDS = ("train_order", "train_offsets", "test_order", "test_offsets")


@dataclasses.dataclass(frozen=True, eq=False)
class Partition:
    """The images of each client, as positions in the source.

    Attributes:
        train_order: training images, client after client.
        train_offsets: the images of client k are `train_order[train_offsets[k]:train_offsets[k + 1]]`.
        test_order, test_offsets: the same for the test images.
    """

    train_order: Int32[np.ndarray, "train"]
    train_offsets: Int64[np.ndarray, "bounds"]
    test_order: Int32[np.ndarray, "test"]
    test_offsets: Int64[np.ndarray, "bounds"]

    @property
    def num_clients(self) -> int:
        return len(self.train_offsets) - 1

    def train_of(self, client: int) -> Int32[np.ndarray, "images"]:
        return self.train_order[self.train_offsets[client] : self.train_offsets[client + 1]]

    def test_of(self, client: int) -> Int32[np.ndarray, "images"]:
        return self.test_order[self.test_offsets[client] : self.test_offsets[client + 1]]

    def between(self, first: int, end: int) -> "Partition":
        """The clients `first` to `end - 1`, numbered from 0."""

        def part(order: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            bounds = offsets[first : end + 1]
            return order[bounds[0] : bounds[-1]], bounds - bounds[0]

        return Partition(*part(self.train_order, self.train_offsets), *part(self.test_order, self.test_offsets))

    def counts(
        self, labels: Int[np.ndarray, "images"], num_classes: int
    ) -> tuple[Int64[np.ndarray, "clients classes"], Int64[np.ndarray, "clients classes"]]:
        """Training and test images of each client and class."""

        def table(order: np.ndarray, offsets: np.ndarray) -> np.ndarray:
            client = np.repeat(np.arange(self.num_clients), np.diff(offsets))
            cells = client * num_classes + labels[order]
            return np.bincount(cells, minlength=self.num_clients * num_classes).reshape(-1, num_classes)

        return table(self.train_order, self.train_offsets), table(self.test_order, self.test_offsets)

    def digest(self) -> str:
        """sha256 of all that a partition says, equal on every platform."""
        total = hashlib.sha256()
        for name in _FIELDS:
            values = getattr(self, name)
            total.update(f"{name}:{len(values)}:".encode() + np.ascontiguousarray(values, "<i8").tobytes())
        return total.hexdigest()

    def save(self, path: str | Path) -> None:
        """Writes an npz file, or nothing at all should it be interrupted."""
        save_arrays(path, self.arrays())

    def arrays(self, prefix: str = "") -> dict[str, np.ndarray]:
        """All that it says, by the names that `load` looks for."""
        return {f"{prefix}{name}": getattr(self, name) for name in _FIELDS}

    @classmethod
    def load(cls, path: str | Path, prefix: str = "") -> "Partition":
        """Reads what `save` wrote; `InputError` where that is missing or damaged."""
        return cls(*load_arrays(path, [f"{prefix}{name}" for name in _FIELDS]))


def save_arrays(path: str | Path, arrays: Mapping[str, Any]) -> None:
    """Writes an npz file, or nothing at all should it be interrupted."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace(path, lambda file: np.savez(file, format=formats.FORMAT, **arrays))


def load_arrays(path: str | Path, names: Sequence[str]) -> list[np.ndarray]:
    """The named arrays of an npz file, the last four of which are training images, offsets, test images, offsets.

    Raises:
        InputError: the file is missing or damaged, or the offsets do not fit.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            formats.check_number(file.get("format", 0), path)
            arrays = [file[name] for name in names]
        train, train_offsets, test, test_offsets = arrays[-4:]
        for order, offsets in ((train, train_offsets), (test, test_offsets)):
            if offsets[0] != 0 or offsets[-1] != len(order) or (np.diff(offsets) < 0).any():
                raise ValueError("offsets do not fit the images")
        if len(train_offsets) != len(test_offsets):
            raise ValueError("training and test images of different numbers of clients")
    except InputError:
        raise
    except Exception as error:  # a damaged zip file raises anything from BadZipFile to zlib.error
        reason = " ".join(str(error).split()) if Path(path).exists() else "no such file"
        raise InputError(
            f"cannot read partition {path} ({reason}); copy it again from where the run was trained, or start the run "
            "anew in another folder"
        ) from error
    return arrays


def partition(
    kind: str,
    labels: Int[np.ndarray, "images"],
    domains: Int[np.ndarray, "images"],
    train_index: Int[np.ndarray, "train"],
    test_index: Int[np.ndarray, "test"],
    *,
    clients: int,
    alpha: float,
    classes_per_client: int,
    min_examples: int,
    seed: int,
    domain_names: Sequence[str] | None = None,
    tests: Int[np.ndarray, "tests"] | None = None,
    may_share: bool = True,
) -> Partition:
    """Deals the training and test images out to clients, each image to exactly one, by a seeded draw.

    Args:
        kind: `iid`: every client alike. `dirichlet`: the clients' shares of each class are drawn from
            Dirichlet(alpha); redrawn up to 100 times, then repaired, until no client has too few images.
            `classes`: each client owns `classes_per_client` classes, each shared evenly among its owners.
            `domain`: a client sees the images of one sensor (or source) only, and the clients of a sensor are
            alike; a sensor has as many clients as any where `clients` is a multiple, or else by its images.
        labels, domains: class and sensor of each image of the source.
        train_index, test_index: the two sides of the split, as positions in the source.
        clients: number of clients.
        alpha: concentration of `dirichlet`; small is skewed.
        classes_per_client: for `classes`.
        min_examples: fewest training images of a client, at least 1.
        seed: a non-negative integer.
        domain_names: what messages call the sensors; by default their numbers.
        tests: images that are dealt out in place of `test_index`, by the same rule; who owns which training image
            stays as it is with `test_index`.
        may_share: whether clients that share images are another way where there are too few.

    Raises:
        InputError: a value out of range, or a partition that cannot be had from these images.
    """
    if kind not in KINDS:
        nearest = difflib.get_close_matches(str(kind), KINDS, n=1, cutoff=0.0)[0]
        raise InputError(f"partition.kind={kind!r} is not known; use {', '.join(KINDS)} (nearest: {nearest!r})")
    if clients < 1:
        raise InputError(f"partition.clients={clients} is out of range; give at least 1")
    if min_examples < 1:
        raise InputError(f"partition.min_examples={min_examples} is out of range; give at least 1")
    _check_enough(clients, min_examples, len(train_index), may_share)
    if kind == "dirichlet" and not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"partition.alpha={alpha} is out of range; give a finite number above 0, such as 0.1")

    rng = np.random.default_rng((seed, _STREAM))
    used = np.concatenate([train_index, test_index])
    classes, sensors = np.unique(labels[used]), np.unique(domains[used])
    groups, num_groups = np.searchsorted(classes, labels), len(classes)
    if kind == "domain":  # each sensor has its own classes, which only its own clients own
        groups = np.searchsorted(sensors, domains) * num_groups + groups
        num_groups *= len(sensors)
    train_groups = _grouped(groups, num_groups, train_index, rng)
    test_groups = _grouped(groups, num_groups, test_index, rng)
    sizes = np.array([len(g) for g in train_groups])

    owners = np.ones((clients, num_groups), bool)
    if kind == "classes":
        owners = _class_owners(len(classes), clients, classes_per_client, rng)
    elif kind == "domain":
        of_sensor = sizes.reshape(len(sensors), -1).sum(axis=1)
        names = [domain_names[int(sensor)] if domain_names else str(sensor) for sensor in sensors]
        seats = _sensor_clients(of_sensor, names, clients, min_examples)
        owners = np.repeat(np.eye(len(sensors), dtype=bool), seats, axis=0).repeat(len(classes), axis=1)
    counts = _dirichlet(sizes, clients, alpha, min_examples, rng) if kind == "dirichlet" else _even(sizes, owners)
    if not _repair(counts, owners, min_examples):
        raise InputError(
            f"partition.min_examples={min_examples} is more than the classes of some clients have images; "
            "give a lower value, fewer clients or more partition.classes_per_client"
        )
    if tests is not None:
        test_groups = _grouped(groups, num_groups, tests[np.isin(domains[tests], sensors)], rng)
    test_sizes = np.array([len(g) for g in test_groups])
    alike = kind in ("iid", "domain")
    tests = _even(test_sizes, owners) if alike else _follow(test_sizes, counts, owners)
    return Partition(*_deal(train_groups, counts), *_deal(test_groups, tests))


def _check_enough(clients: int, min_examples: int, images: int, may_share: bool) -> None:
    """Refuses fewer training images than the clients need."""
    if clients * min_examples <= images:
        return
    ways = []
    if most := images // min_examples:
        ways.append(f"at most {most} client{'s' * (most > 1)}")
    if each := images // clients:
        ways.append(f"partition.min_examples={each}")
    if not ways:
        ways.append("more images to train on")
        if images:
            ways.append(f"at most {images} client{'s' * (images > 1)} with partition.min_examples=1")
    if may_share:
        ways.append("partition.kind=virtual, whose clients share images")
    raise InputError(
        f"partition.clients={clients} with partition.min_examples={min_examples} need {clients * min_examples} "
        f"training image{'s' * (clients * min_examples > 1)} and there are {images}; give {', or '.join(ways)}"
    )


def _grouped(groups: np.ndarray, num_groups: int, index: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """The images of each group, shuffled."""
    of_image = groups[index]
    return [rng.permutation(index[of_image == g]) for g in range(num_groups)]


def _deal(groups: Sequence[np.ndarray], counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deals each group out by its column of counts [clients, groups]; the clients' images, and offsets."""
    pieces = [np.split(g, np.cumsum(counts[:-1, c])) for c, g in enumerate(groups)]
    of_client = [np.sort(np.concatenate([p[k] for p in pieces])) for k in range(len(counts))]
    offsets = np.cumsum([0, *(len(images) for images in of_client)])
    return np.concatenate(of_client).astype(np.int32), offsets.astype(np.int64)


def _apportion(total: int, weights: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """Shares of `total` in proportion to `weights`, by largest remainder: each its quota, rounded down or up.

    Of equal remainders, the client furthest `behind` what it should have had so far comes first, then the
    lower number; else the first client would win every tie. `behind` is brought up to date in place.
    """
    quota = total * weights / weights.sum()
    # 9 digits: quotas that are equal in exact arithmetic must not be told apart by their rounding errors.
    shares = np.floor(quota.round(9)).astype(np.int64)
    remainder = (quota - shares).round(9)
    order = np.lexsort((-behind.round(9), -remainder))
    shares[order[: total - shares.sum()]] += 1
    behind += quota - shares
    return shares


def _even(sizes: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Counts [clients, groups] that share each group evenly among its owners; what is over is evened out."""
    behind = np.zeros(len(owners))
    return np.stack([_apportion(int(n), owners[:, c].astype(float), behind) for c, n in enumerate(sizes)], axis=1)


def _follow(sizes: np.ndarray, counts: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Counts of test images [clients, groups] in proportion to the training counts."""
    behind = np.zeros(len(counts))
    columns = []
    for c, n in enumerate(sizes):
        weights = counts[:, c] if counts[:, c].any() else owners[:, c]  # a class without training images
        columns.append(_apportion(int(n), weights.astype(float), behind))
    return np.stack(columns, axis=1)


def _dirichlet(
    sizes: np.ndarray, clients: int, alpha: float, min_examples: int, rng: np.random.Generator
) -> np.ndarray:
    """Counts [clients, classes], Dirichlet shares of each class: the draw least short of `min_examples`."""
    best, least = None, math.inf
    for _ in range(_REDRAWS):
        columns = []
        for n in sizes:
            shares = rng.dirichlet(np.full(clients, alpha))
            if not np.isfinite(shares).all() or shares.sum() <= 0:  # alpha so small that all shares underflow
                shares = np.eye(clients)[rng.integers(clients)]
            columns.append(_apportion(int(n), shares, np.zeros(clients)))
        counts = np.stack(columns, axis=1)
        short = np.maximum(min_examples - counts.sum(axis=1), 0).sum()
        if short < least:
            best, least = counts, short
        if short == 0:
            break
    assert best is not None
    return best


def _class_owners(classes: int, clients: int, each: int, rng: np.random.Generator) -> np.ndarray:
    """Who owns which class, bool [clients, classes]: `each` classes a client, equally many owners each."""
    if not 1 <= each <= classes:
        raise InputError(f"partition.classes_per_client={each} is out of range; give 1 to {classes}")
    if clients * each < classes:
        raise InputError(
            f"partition.clients={clients} with partition.classes_per_client={each} own {clients * each} of "
            f"{classes} classes, and the others would be nobody's; give at least {-(-classes // each)} "
            f"clients or {-(-classes // clients)} classes"
        )
    owners = np.zeros((clients, classes), bool)
    for k in range(clients):
        # The classes with the fewest owners so far, in random order: all are taken once before one is twice.
        owners[k, np.lexsort((rng.random(classes), owners.sum(axis=0)))[:each]] = True
    return owners


def _sensor_clients(images: np.ndarray, names: Sequence[str], clients: int, min_examples: int) -> np.ndarray:
    """Clients of each sensor: equally many where that comes out even.

    Otherwise one each, then always to the sensor with the most images a client (D'Hondt), which makes the smallest
    client as large as can be.
    """
    sensors = len(images)
    if sensors < 2:
        raise InputError(
            "partition.kind='domain' needs images of at least two sensors and these are of one; "
            "use data.source=scenes with several domains, several sources, a folder whose folders are domains by "
            "data.layout=domains, or another partition.kind"
        )
    if clients < sensors:
        raise InputError(f"partition.clients={clients} is less than the {sensors} sensors; give at least {sensors}")
    seats = np.full(sensors, clients // sensors if clients % sensors == 0 else 1, np.int64)
    for _ in range(clients - seats.sum()):
        seats[np.argmax(images / (seats + 1))] += 1
    if (images // seats < min_examples).any():
        poorest = int(np.argmin(images // seats))
        raise InputError(
            f"partition.min_examples={min_examples} with partition.clients={clients}: sensor {names[poorest]} has "
            f"{images[poorest]} training images for {seats[poorest]} client(s); lower either"
        )
    return seats


def _repair(counts: np.ndarray, owners: np.ndarray, min_examples: int) -> bool:
    """Moves training images, in place, from the richest clients to those below the minimum; False if stuck.

    An image only moves within its class, to an owner of it.
    """
    totals = counts.sum(axis=1)
    while totals.min() < min_examples:
        poor = int(totals.argmin())
        able = (totals > min_examples) & counts[:, owners[poor]].any(axis=1)
        if not able.any():
            return False
        rich = int(np.where(able, totals, -1).argmax())
        c = int(np.where(owners[poor], counts[rich], -1).argmax())
        counts[rich, c] -= 1
        counts[poor, c] += 1
        totals[rich] -= 1
        totals[poor] += 1
    return True

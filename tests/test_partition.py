"""Partitions: every image with one client, nobody below the minimum, proportions as each kind says."""

import contextlib
import os

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fedrsclip_jax.data.partition import KINDS, Partition, partition
from fedrsclip_jax.errors import InputError

repeatable = settings(deadline=None, derandomize=True, max_examples=60)


def refusal(*needles: str):
    """An InputError of one line that names each of these."""
    return pytest.raises(InputError, check=lambda e: "\n" not in str(e) and all(n in str(e) for n in needles))


def images(classes: int, each: int, sensors: int = 1, seed: int = 0, test_share: float = 0.25):
    """Labels, sensors and a split of a source with `each` images of every class, in random order."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(classes), each)).astype(np.int32)
    domains = rng.integers(sensors, size=len(labels)).astype(np.int32)
    is_test = rng.random(len(labels)) < test_share
    return labels, domains, np.flatnonzero(~is_test), np.flatnonzero(is_test)


def deal(kind: str, data, clients: int, **options) -> Partition:
    defaults = {"alpha": 0.3, "classes_per_client": 2, "min_examples": 1, "seed": 0}
    return partition(kind, *data, clients=clients, **(defaults | options))


@st.composite
def problems(draw):
    classes, sensors = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    data = images(classes, draw(st.integers(1, 40)), sensors, draw(st.integers(0, 99)), draw(st.floats(0.05, 0.6)))
    return data, {
        "clients": draw(st.integers(1, 12)),
        "alpha": draw(st.sampled_from([1e-3, 0.05, 0.5, 5.0, 1e4])),
        "classes_per_client": draw(st.integers(1, classes)),
        "min_examples": draw(st.integers(1, 5)),
        "seed": draw(st.integers(0, 99)),
    }


@pytest.mark.parametrize("kind", KINDS)
@repeatable
@given(problem=problems())
def test_every_image_has_one_owner_and_nobody_is_below_the_minimum(kind, problem):
    data, options = problem
    labels, _, train_index, test_index = data
    if kind in ("iid", "dirichlet"):  # possible whenever there are enough images at all
        assume(options["clients"] * options["min_examples"] <= len(train_index))
        made = partition(kind, *data, **options)
    else:
        made = None
        with contextlib.suppress(InputError):
            made = partition(kind, *data, **options)
        assume(made is not None)
    assert made.num_clients == options["clients"]
    assert (made.train_order.dtype, made.train_offsets.dtype) == (np.int32, np.int64)
    assert sorted(made.train_order) == train_index.tolist()
    assert sorted(made.test_order) == test_index.tolist()
    assert np.diff(made.train_offsets).min() >= options["min_examples"]
    train, test = made.counts(labels, 8)
    assert train.sum(axis=1).tolist() == [len(made.train_of(k)) for k in range(made.num_clients)]
    assert test.sum(axis=0).tolist() == np.bincount(labels[test_index], minlength=8).tolist()
    assert partition(kind, *data, **options).digest() == made.digest()


@repeatable
@given(problem=problems())
def test_dirichlet_test_images_follow_the_training_images(problem):
    data, options = problem
    labels, _, train_index, _ = data
    assume(options["clients"] * options["min_examples"] <= len(train_index))
    train, test = partition("dirichlet", *data, **options).counts(labels, 8)
    for c in np.flatnonzero(train.sum(axis=0)):
        wanted = test[:, c].sum() * train[:, c] / train[:, c].sum()
        assert (np.abs(test[:, c] - wanted) < 1 + 1e-9).all()  # largest remainder: down or up, never further


@repeatable
@given(problem=problems())
def test_iid_is_near_even(problem):
    data, options = problem
    labels, _, train_index, _ = data
    assume(options["clients"] * options["min_examples"] <= len(train_index))
    made = partition("iid", *data, **options)
    train, test = made.counts(labels, 8)
    assert np.ptp(train, axis=0).max() <= 1  # of every class
    assert np.ptp(train.sum(axis=1)) <= 1
    assert np.ptp(test, axis=0).max() <= 1
    assert np.ptp(test.sum(axis=1)) <= 1


@pytest.mark.parametrize(("classes", "clients", "each"), [(10, 10, 2), (10, 5, 2), (7, 20, 3), (6, 4, 6), (9, 9, 1)])
def test_classes_gives_each_client_its_number_of_classes(classes, clients, each):
    data = images(classes, 60)
    made = deal("classes", data, clients, classes_per_client=each)
    train, test = made.counts(data[0], classes)
    assert ((train > 0).sum(axis=1) == each).all()
    assert ((test > 0) <= (train > 0)).all()
    owners = (train > 0).sum(axis=0)
    assert owners.min() >= 1
    assert np.ptp(owners) <= 1
    for c in range(classes):
        shares = train[train[:, c] > 0, c]
        assert np.ptp(shares) <= 1


def test_every_sensor_has_as_many_clients_where_that_comes_out_even():
    labels, _, train_index, test_index = images(5, 100)
    domains = np.random.default_rng(1).choice(3, size=500, p=[0.8, 0.15, 0.05]).astype(np.int32)
    made = deal("domain", (labels, domains, train_index, test_index), 6)
    sensor = [set(domains[made.train_of(k)]) for k in range(6)]
    assert sensor == [{0}, {0}, {1}, {1}, {2}, {2}]
    assert all(set(domains[made.test_of(k)]) <= sensor[k] for k in range(6))


def test_domain_clients_see_one_sensor_and_large_sensors_have_more_clients():
    labels, _, train_index, test_index = images(5, 100, test_share=0.2)
    domains = np.random.default_rng(1).choice(3, size=500, p=[0.6, 0.3, 0.1]).astype(np.int32)
    data = labels, domains, train_index, test_index
    made = deal("domain", data, 10)
    sensor = [set(domains[made.train_of(k)]) for k in range(10)]
    assert all(len(s) == 1 for s in sensor)
    assert all(set(domains[made.test_of(k)]) <= sensor[k] for k in range(10))
    assert [sum(s == {d} for s in sensor) for d in range(3)] == [6, 3, 1]
    train, _ = made.counts(labels, 5)
    assert np.ptp(train[:6], axis=0).max() <= 1  # the clients of a sensor are alike


def test_small_alpha_is_skewed_and_large_alpha_is_not():
    data = images(8, 200)
    skew = {}
    for alpha in (0.05, 100.0):
        train, _ = deal("dirichlet", data, 5, alpha=alpha).counts(data[0], 8)
        skew[alpha] = float((train.max(axis=0) / train.sum(axis=0)).mean())
    assert skew[0.05] > 0.6  # one client has most of a class
    assert skew[100.0] < 0.3  # 0.2 would be even


def test_dirichlet_repairs_what_redrawing_cannot():
    data = images(2, 40, test_share=0.2)
    made = deal("dirichlet", data, 10, alpha=1e-3, min_examples=len(data[2]) // 10)
    assert np.diff(made.train_offsets).min() == len(data[2]) // 10


def test_ties_do_not_always_go_to_the_first_clients():
    data = images(30, 16, test_share=0.2)
    _, test = deal("iid", data, 10).counts(data[0], 30)
    # By number alone, the first clients would have up to 30 more than the last.
    assert np.ptp(test.sum(axis=1)) <= 1


def test_seed_decides():
    data = images(6, 50, sensors=3)
    for kind in KINDS:
        assert deal(kind, data, 6, seed=1).digest() != deal(kind, data, 6, seed=2).digest()


def test_saved_and_loaded(tmp_path):
    data = images(6, 50)
    made = deal("dirichlet", data, 6)
    path = tmp_path / "run" / "partition.npz"
    made.save(path)
    assert os.listdir(path.parent) == ["partition.npz"]
    again = Partition.load(path)
    assert again.digest() == made.digest()
    assert (again.train_order.dtype, again.test_offsets.dtype) == (np.int32, np.int64)
    path.write_bytes(path.read_bytes()[:200])
    with refusal(str(path), "in another folder"):
        Partition.load(path)
    with refusal("none.npz", "no such file"):
        Partition.load(tmp_path / "none.npz")


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "partition.npz"
    deal("iid", images(3, 20), 2).save(path)
    before = path.read_bytes()

    def fail(*_, **__):
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        deal("iid", images(3, 30), 3).save(path)
    assert os.listdir(tmp_path) == ["partition.npz"]
    assert path.read_bytes() == before


def test_refused():
    data = images(6, 20, sensors=2)
    train = len(data[2])
    with refusal("partition.kind='diriclet'", "iid, dirichlet, classes, domain", "nearest: 'dirichlet'"):
        deal("diriclet", data, 4)
    for clients in (0, -3):
        with refusal(f"partition.clients={clients}", "at least 1"):
            deal("iid", data, clients)
    with refusal("partition.min_examples=0", "at least 1"):
        deal("iid", data, 4, min_examples=0)
    with refusal(
        f"partition.clients={train + 1}", f"there are {train}", f"at most {train} clients", "partition.kind=virtual"
    ):
        deal("iid", data, train + 1)
    with refusal("need 150", f"at most {train // 15} clients, or partition.min_examples={train // 10}, or partition.k"):
        deal("iid", data, 10, min_examples=15)
    with refusal("partition.clients=10", "partition.min_examples=50", "need 500"):
        deal("dirichlet", data, 10, min_examples=50)
    for alpha in (0.0, -1.0, float("nan"), float("inf")):
        with refusal(f"partition.alpha={alpha}", "above 0"):
            deal("dirichlet", data, 4, alpha=alpha)
    for each in (0, 7):
        with refusal(f"partition.classes_per_client={each}", "1 to 6"):
            deal("classes", data, 4, classes_per_client=each)
    with refusal("partition.clients=2", "partition.classes_per_client=2", "nobody", "3 clients or 3 classes"):
        deal("classes", data, 2, classes_per_client=2)
    with refusal("partition.clients=1", "2 sensors"):
        deal("domain", data, 1)
    with refusal("'domain'", "at least two sensors", "data.layout=domains"):
        deal("domain", images(6, 20), 4)
    lopsided = np.zeros(120, np.int32)
    lopsided[data[2][:2]] = 1
    with refusal("partition.min_examples=3", "sensor 1", "2 training images"):
        deal("domain", (data[0], lopsided, *data[2:]), 4, min_examples=3)
    rare = np.where(np.arange(120) < 2, 0, 1).astype(np.int32)  # two images of a class that somebody must own alone
    with refusal("partition.min_examples=5", "classes_per_client"):
        deal(
            "classes",
            (rare, data[1], np.arange(100), np.arange(100, 120)),
            2,
            classes_per_client=1,
            min_examples=5,
        )

"""Virtual clients: what one owns follows from seed and number alone, by its class proportions, at no cost by size."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrsclip_jax.config import MAX_CLIENTS
from fedrsclip_jax.data.virtual import MOST_PARTICIPANTS, MOST_SCORED, VirtualClients, virtual_clients

repeatable = settings(deadline=None, derandomize=True, max_examples=60)
CLASSES = 8


def sides(each: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels and the two sides of a source with `each` images of every class, a quarter of them for testing."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(CLASSES), each)).astype(np.int32)
    place = np.empty(len(labels), int)
    place[np.argsort(labels, kind="stable")] = np.tile(np.arange(each), CLASSES)
    is_test = place < max(1, each // 4)
    return labels, np.flatnonzero(~is_test), np.flatnonzero(is_test)


def population(data=None, **options) -> VirtualClients:
    defaults = {"clients": 1_000_000, "alpha": 0.3, "examples_per_client": 30, "seed": 0}
    return virtual_clients(*(data or sides()), **(defaults | options))


def owned(clients: VirtualClients, ids, split: str) -> list[list[int]]:
    rows, counts = clients.padded(np.asarray(ids), split)
    assert counts.tolist() == clients.counts(np.asarray(ids), split).tolist()
    return [row[:count].tolist() for row, count in zip(rows, counts, strict=True)]


@repeatable
@given(
    each=st.integers(2, 40),
    alpha=st.sampled_from([1e-300, 1e-3, 0.1, 1.0, 50.0, 1e308]),
    share=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_every_client_has_its_number_of_different_images_of_its_side(each, alpha, share, seed):
    data = labels, train_index, test_index = sides(each, seed)
    wanted = max(1, int(share * len(train_index)))
    clients = population(data, alpha=alpha, examples_per_client=wanted, seed=seed)
    ids = [0, 1, 999_999, 31_415]
    for train, test in zip(owned(clients, ids, "train"), owned(clients, ids, "test"), strict=True):
        assert len(set(train)) == len(train) == wanted == clients.longest("train")
        assert 1 <= len(set(test)) == len(test) <= clients.longest("test")
        assert set(train) <= set(train_index)
        assert set(test) <= set(test_index)
        assert set(labels[test]) <= set(labels[train])
    assert sorted(clients.pooled) == test_index.tolist()


def test_a_client_is_the_same_in_every_cohort_and_population():
    clients = population()
    ids = np.array([5, 999_999, 17, 0, 123_456])
    for split in ("train", "test"):
        alone = {int(k): owned(clients, [k], split)[0] for k in ids}
        assert len({tuple(images) for images in alone.values()}) == len(ids)
        for order in (ids[::-1], np.array([17, -1, 5]), np.arange(40)):
            for k, images in zip(order, owned(clients, order, split), strict=True):
                assert images == (alone.get(int(k), images) if k >= 0 else [])
        # How many others there are makes no difference; the seed does.
        assert owned(population(clients=MAX_CLIENTS), ids, split) == list(alone.values())
        assert owned(population(seed=1), ids, split) != list(alone.values())


@pytest.mark.parametrize("alpha", [0.1, 1.0, 30.0])
def test_class_proportions_are_drawn_from_the_dirichlet(alpha):
    """Counts of a Dirichlet-multinomial: mean n/C, variance n/C (1 - 1/C) (n + C alpha) / (1 + C alpha)."""
    data = sides(each=400)  # 300 for training, so that no class runs out at 40 images a client
    clients = population(data, alpha=alpha, examples_per_client=40)
    ids = np.arange(3000)
    counts = np.stack([np.bincount(data[0][images], minlength=CLASSES) for images in owned(clients, ids, "train")])
    assert counts.mean(axis=0) == pytest.approx(np.full(CLASSES, 40 / CLASSES), rel=0.2)
    spread = 40 / CLASSES * (1 - 1 / CLASSES) * (40 + CLASSES * alpha) / (1 + CLASSES * alpha)
    # 24,000 counts: their variance is known within a few percent.
    assert counts.var() == pytest.approx(spread, rel=0.1)


def test_test_images_follow_the_training_images():
    labels, *_ = data = sides(each=400)
    clients = population(data, examples_per_client=36)
    assert clients.longest("test") == 12  # as one to three, like the sides
    for train, test in zip(owned(clients, range(200), "train"), owned(clients, range(200), "test"), strict=True):
        quota = np.bincount(labels[train], minlength=CLASSES) / 3
        difference = np.bincount(labels[test], minlength=CLASSES) - quota
        assert np.abs(difference).max() < 1
        assert difference.sum() == pytest.approx(0)


def test_images_of_a_class_are_drawn_alike():
    """A side is owned evenly over many clients: 240 images, each with 5,000 x 6 / 240 = 125 owners on average."""
    data = sides(each=40)
    clients = population(data, alpha=1e9, examples_per_client=6)
    owners = np.bincount(np.concatenate(owned(clients, np.arange(5000), "train")))[data[1]]
    # Binomial with mean 125 and deviation 11; five deviations leave one image in 10,000 tries outside.
    assert np.abs(owners - 125).max() < 5 * 11.2


def test_a_class_that_is_used_up_leaves_the_rest_to_others():
    labels, *_ = data = sides(each=8)  # six images a class for training
    clients = population(data, alpha=1e-3, examples_per_client=20)
    kinds = [np.bincount(labels[images], minlength=CLASSES) for images in owned(clients, range(50), "train")]
    assert all(counts.sum() == 20 and counts.max() == 6 for counts in kinds)


def test_a_seeded_sample_of_the_population_is_scored():
    sample = population(clients=10**9).scored(0, 0)
    assert len(np.unique(sample)) == len(sample) == MOST_SCORED
    assert sample.tolist() == sorted(sample.tolist())
    # Evenly over the population: means of 1,000 numbers deviate by 1 / sqrt(12,000) of its size.
    assert abs(sample.mean() / 10**9 - 0.5) < 4 / 12_000**0.5
    assert population(clients=10**9).scored(0, 0).tolist() == sample.tolist()
    assert population(clients=10**9).scored(0, 1).tolist() != sample.tolist()
    assert len(population(clients=10**9).scored(12, 0)) == 12
    assert population(clients=40).scored(0, 0).tolist() == population(clients=40).scored(50, 0).tolist() == [*range(40)]


def test_of_those_that_took_part_all_are_scored_or_a_sample():
    few, many = np.array([3, 7, 900_000]), np.arange(MOST_PARTICIPANTS + 5)
    assert population().participants(few, 0, 0).tolist() == few.tolist()
    assert set(population().participants(few, 2, 0)) < set(few)
    sample = population().participants(many, 0, 0)
    assert len(np.unique(sample)) == MOST_PARTICIPANTS
    assert population().participants(many, 0, 0).tolist() == sample.tolist()


def test_any_clients_have_as_many_training_images_as_others():
    assert population().most_images(64, "train") == 64 * 30
    assert population(clients=10).most_images(64, "train") == 300


def test_nothing_grows_with_the_number_of_clients():
    few, many = population(clients=1000), population(clients=MAX_CLIENTS)
    ids = np.array([0, MAX_CLIENTS - 1, 77, 2**30])
    tracemalloc.start()
    try:
        many.counts(ids, "train")
        many.counts(ids, "test")
        many.padded(ids, "train", many.width("train"))
        many.padded(ids, "test")
        many.digest()
        many.scored(0, 0)
        many.participants(ids, 0, 0)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**20  # a single byte a client would be 2 GiB
    assert (few.longest("train"), few.width("test")) == (many.longest("train"), many.width("test"))


def test_padding_and_misuse():
    clients = population(clients=10)
    table, counts = clients.padded(np.array([-1, 3, -1]), "train", 32)
    assert counts.tolist() == [0, 30, 0]
    assert not table[[0, 2]].any()
    assert clients.padded(np.array([], np.int32), "test")[0].shape == (0, clients.longest("test"))
    with pytest.raises(ValueError, match="0 to 9"):
        clients.padded(np.array([10]), "train")
    with pytest.raises(ValueError, match="width=29"):
        clients.padded(np.array([3]), "train", 29)
    with pytest.raises(ValueError, match="'valid'"):
        clients.counts(np.array([3]), "valid")


def test_a_saved_file_is_told_from_that_of_other_clients(tmp_path, refused):
    path = tmp_path / "partition.npz"
    clients = population()
    clients.save(path)
    assert clients.saved_as(path)
    again = VirtualClients.load(path)
    assert owned(again, [0, 41], "test") == owned(clients, [0, 41], "test")
    others = [
        population(seed=1),
        population(alpha=0.4),
        population(clients=999_999),
        population(examples_per_client=29),
        population(sides(each=61)),
        dataclasses.replace(clients, test=clients.test[::-1].copy()),
    ]
    assert len({other.digest() for other in others} | {clients.digest()}) == len(others) + 1
    assert not any(other.saved_as(path) for other in others)
    path.write_bytes(path.read_bytes()[:-40])
    with refused("partition.npz", "cannot read"):
        clients.saved_as(path)


def test_refusals(refused):
    with refused("partition.clients=0", MAX_CLIENTS):
        population(clients=0)
    with refused("partition.clients=2147483648", MAX_CLIENTS):
        population(clients=MAX_CLIENTS + 1)
    for alpha in (0.0, -1.0, np.nan, np.inf):
        with refused(f"partition.alpha={alpha}"):
            population(alpha=alpha)
    for examples in (0, 361):
        with refused(f"partition.examples_per_client={examples}", "1 to 360"):
            population(examples_per_client=examples)

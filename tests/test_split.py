"""The split: stratified, seeded, and with exact duplicates on one side."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrsclip_jax import ingredients
from fedrsclip_jax.config import Config, resolve
from fedrsclip_jax.data.split import stratified_split
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.task import divide_images, split

repeatable = settings(deadline=None, derandomize=True, max_examples=60)


def refusal(*needles: str):
    """An InputError of one line that names each of these."""
    return pytest.raises(InputError, check=lambda e: "\n" not in str(e) and all(n in str(e) for n in needles))


@repeatable
@given(
    sizes=st.lists(st.integers(2, 30), min_size=1, max_size=6),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_stratified_and_complete(sizes, fraction, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    digests = [str(i) for i in range(len(labels))]
    train, test = stratified_split(labels, digests, fraction, seed, np.ones(len(labels), bool))
    assert train.dtype == test.dtype == np.int32
    assert sorted([*train, *test]) == list(range(len(labels)))
    for c, n in enumerate(sizes):
        of_class = int((labels[test] == c).sum())
        assert of_class == min(max(round(fraction * n), 1), n - 1) or abs(of_class - fraction * n) <= 0.5


@repeatable
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9), st.booleans()), max_size=60),
    seed=st.integers(0, 1000),
)
def test_duplicates_stay_together_and_the_ineligible_stay_out(rows, seed):
    # three sound classes of two distinct images each, so that there is always a split
    rows = [(c, 100 + 2 * c + i, True) for c in range(3) for i in range(2)] + rows
    labels = np.array([row[0] for row in rows])
    digests = [str(row[1]) for row in rows]
    eligible = np.array([row[2] for row in rows])
    train, test = stratified_split(labels, digests, 0.3, seed, eligible)
    assert sorted([*train, *test]) == np.flatnonzero(eligible).tolist()
    assert not {digests[i] for i in train} & {digests[i] for i in test}
    for side in (train, test):
        assert set(labels[side]) == {0, 1, 2}


def test_seeded():
    labels, digests, everything = np.repeat([0, 1], 50), [str(i) for i in range(100)], np.ones(100, bool)
    one, same, other = (stratified_split(labels, digests, 0.2, seed, everything) for seed in (1, 1, 2))
    assert np.array_equal(one[1], same[1])
    assert not np.array_equal(one[1], other[1])
    assert len(one[1]) == 20


def test_refused():
    labels, everything = np.array([0, 0, 1, 1]), np.ones(4, bool)
    for fraction in (0.0, 1.0, -0.2, 20.0, float("nan")):
        with refusal(f"data.test_fraction={fraction}", "between 0 and 1", "0.2"):
            stratified_split(labels, list("abcd"), fraction, 0, everything)
    with refusal("class 1", "1 distinct", "at least two"):
        stratified_split(labels, list("abcc"), 0.5, 0, everything)
    with refusal("'river'", "1 distinct", "add images"):
        stratified_split(labels, list("abcd"), 0.5, 0, np.array([True, True, True, False]), ["beach", "river"])
    with refusal("'forest'", "0 distinct"):
        stratified_split(labels, list("abcd"), 0.5, 0, everything, ["beach", "river", "forest"])


def test_strata_give_their_share_of_test_images():
    """Three sensors of 50, 9 and 2 images a class: over 8 classes each gives a fifth, where chance alone would not."""
    labels, sensors = np.repeat(np.arange(8), 61), np.tile(np.repeat([0, 1, 2], [50, 9, 2]), 8)
    digests, everything = [str(i) for i in range(len(labels))], np.ones(len(labels), bool)
    plain = stratified_split(labels, digests, 0.2, 0, everything)
    for seed in range(20):
        train, test = stratified_split(labels, digests, 0.2, seed, everything, strata=sensors)
        assert len(test) == len(plain[1])
        assert sorted([*train, *test]) == list(range(len(labels)))
        for c in range(8):
            for sensor, n in enumerate((50, 9, 2)):
                of_cell = int(((labels[test] == c) & (sensors[test] == sensor)).sum())
                assert abs(of_cell - 0.2 * n) < 1.3, (seed, c, sensor)
        rare = int((sensors[test] == 2).sum())
        assert 1 <= rare <= 7, rare  # 3.2 of 16 on average


SEEDS = range(4)


@pytest.fixture(scope="module")
def images():
    """Eight scenes of each of sixteen classes."""
    return ingredients.load_images("scenes", scenes__count=128, image_size=16)


def scored(images, seed: int, which: str, **keys: int) -> set[int]:
    overrides = [("seed", str(seed)), ("eval.split", which), *((f"data.{key}", str(v)) for key, v in keys.items())]
    return set(split(resolve(Config, {}, overrides), images)[1].tolist())


def test_no_run_chooses_on_an_image_that_another_is_tested_on(images):
    """A sweep over seeds chooses by the mean over all of them, and the table of results has other seeds still."""
    chosen_on = set().union(*(scored(images, seed, "validation") for seed in SEEDS))
    tested_on = set().union(*(scored(images, seed, "test") for seed in SEEDS))
    assert chosen_on
    assert tested_on
    assert chosen_on.isdisjoint(tested_on)
    following = [scored(images, 0, "test", split_seed=-1), scored(images, 1, "validation", split_seed=-1)]
    assert not following[0].isdisjoint(following[1]), "the key makes the difference"


@pytest.mark.parametrize("which", ["test", "validation"])
def test_the_split_follows_the_run_where_it_is_asked_to(images, which):
    following = [scored(images, seed, which, split_seed=-1) for seed in SEEDS]
    assert following == [scored(images, 9, which, split_seed=seed) for seed in SEEDS]
    assert len({frozenset(one) for one in following}) == len(SEEDS)


def test_clients_of_any_seed_are_tested_on_the_same_images(images):
    """Virtual ones, those of a partition, and those of Python; who owns which image is another for every seed."""
    virtual = {"partition.kind": "virtual", "partition.examples_per_client": "8", "cohort": "2"}
    made = {
        "virtual": [
            divide_images(resolve(Config, {}, [*virtual.items(), ("seed", str(seed))]), images) for seed in (0, 1)
        ],
        "dirichlet": [divide_images(resolve(Config, {}, [("seed", str(seed))]), images) for seed in (0, 1)],
        "of Python": [ingredients.make_clients(images, seed=seed) for seed in (0, 1)],
    }
    tests = scored(images, 0, "test")
    for kind, (one, other) in made.items():
        assert set(one.pooled.tolist()) == set(other.pooled.tolist()) == tests, kind
        owned = [clients.padded(np.arange(1), "train")[0].tolist() for clients in (one, other)]
        assert owned[0] != owned[1], kind
    for seed in (-1, 3):
        clients = ingredients.make_clients(images, seed=3, split_seed=seed)
        assert set(clients.pooled.tolist()) == scored(images, 3, "test", split_seed=-1) != tests

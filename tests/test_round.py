"""The SPMD round against plain Python, and what its compiled form may hold."""

import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.round import run_rounds, traffic
from fedrsclip_jax.federated.sums import weighted_sum
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Batch, Weights
from tests import plain, toy


@pytest.fixture(scope="module")
def frozen(tiny_folder):
    return toy.backbone(tiny_folder)


def game(name: str, frozen, *, devices=1, lanes=1, views=1, **overrides) -> toy.Game:
    config = toy.settings(**{"method.name": name, **overrides})
    make = partial(METHODS[name], config.method, frozen)
    return toy.Game(make, config, frozen, toy.dataset_for(name, views), devices=devices, lanes=lanes)


def slope(frozen, *, features=None, devices=1, lanes=1, **overrides) -> toy.Game:
    """A federation whose client k has the same features in all its images, so that its steps are known."""
    data = toy.dataset()
    if features is not None:
        owner = np.repeat(np.arange(len(toy.COUNTS)), toy.COUNTS)
        data = Dataset(jnp.asarray(features[owner][None], jnp.float32), data.labels)
    config = toy.settings(**{"local.learning_rate": "1.0", "local.momentum": "0.0", **overrides})
    return toy.Game(toy.Slope, config, frozen, data, devices=devices, lanes=lanes)


def plain_loop(g: toy.Game, shared, private, number: int):
    """One round as anyone would write it: clients one after another, and then the average of what they changed."""
    total = jax.tree.map(jnp.zeros_like, shared)
    privates = {}
    for client, count in enumerate(toy.COUNTS):
        key = jax.random.fold_in(jax.random.fold_in(g.key, number), client)
        start = (shared, private(client))
        prompts = plain.trained(g.config, g.graph, start, client, key, g.data, g.frozen, g.config.local.epochs)
        share = count / sum(toy.COUNTS)
        total = jax.tree.map(lambda t, a, b, w=share: t + w * (a - b), total, prompts[0], shared)
        privates[client] = prompts[1]
    return jax.tree.map(jnp.add, shared, total), privates


def assert_close(actual, expected, tolerance):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def by_hand(frozen):
    """Shared and private variables after the first and the second round; the same for every layout."""

    @cache
    def rounds(name: str):
        g = two_epochs(name, frozen)
        shared, private, found = g.shared, g.private, []
        for number in (1, 2):
            found.append(plain_loop(g, shared, private, number))
            shared, private = found[-1][0], found[-1][1].__getitem__
        return found

    return rounds


def two_epochs(name: str, frozen, **layout: int) -> toy.Game:
    # FedPGP's private factor moves by as much as its random counterpart is long: by two at the others' step size, where
    # the last digits of two sums in another order are no longer below 1e-5.
    rate = {"local.learning_rate": "0.01"} if name == "fedpgp" else {}
    return game(name, frozen, views=2, **layout, **{"local.epochs": "2"}, **rate)


@pytest.mark.parametrize(("devices", "lanes"), [(1, 1), (8, 1), (2, 3)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_equals_a_plain_loop_over_clients(frozen, by_hand, name, devices, lanes):
    g = two_epochs(name, frozen, devices=devices, lanes=lanes)
    start = jax.tree.map(jnp.copy, g.shared)
    for number, (shared, privates) in enumerate(by_hand(name), 1):
        g.round(number)
        assert_close(g.server.shared, shared, 1e-5)
        assert_close([g.kept[k] for k in privates], list(privates.values()), 1e-5)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), g.server.shared, start)
    assert all(m > 1e-3 for m in jax.tree.leaves(moved)), "the prompts have to move for the comparison to mean much"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_compiled_round_has_one_all_reduce_and_no_other_collective(frozen, name):
    g = game(name, frozen, devices=8)
    text = run_rounds.lower(*g.arguments()).compile().as_text()
    assert len(re.findall(r" all-reduce(?:-start)?\(", text)) == 1
    assert not re.search(r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\(", text)


def test_uplink_is_counted_from_the_arrays_that_are_reduced(frozen):
    """4 context tokens x 512: 2,048 numbers; beside them the weight, the figures, and how many were refused."""

    class Wide(toy.Slope):
        def __init__(self, key):
            self.shared = toy.Shared(jnp.zeros((4, 512)))
            self.private = toy.Private(jnp.zeros((4, 512)))

        def loss(self, batch, backbone, weights):
            return jnp.sum(self.shared[...] * self.private[...]) + jnp.sum(batch.features), {}

    g = toy.Game(Wide, toy.settings(), frozen, toy.dataset(), devices=8)
    assert traffic(g.shared) == (2048, 8192)
    text = run_rounds.lower(*g.arguments()).compile().as_text()
    (reduced,) = re.findall(r"= f32\[(\d+)\]\S* all-reduce(?:-start)?\(", text)
    figures = {"loss", "images"}
    assert int(reduced) == 2048 + 2 + len(figures)


def test_one_trace_serves_all_rounds_and_hyper_parameters(frozen):
    g = game("fedrsclip", frozen)
    g.round(1)
    traces = run_rounds._cache_size()
    for number in (2, 3, 4):
        g.round(number)
    changed = {"local.learning_rate": "0.3", "local.proximal_weight": "0.1", "server.learning_rate": "0.5"}
    game("fedrsclip", frozen, **changed, **{"method.pacl_weight": "1", "method.cmfac_weight": "0"}).round(1)
    assert run_rounds._cache_size() == traces


def test_the_average_is_weighted_by_images_and_is_not_the_last_client(frozen):
    """Known deltas: one full batch at rate 1 moves client k by exactly its feature (fault 1 of the peers)."""
    features = np.random.default_rng(5).normal(size=(len(toy.COUNTS), 16))
    g = slope(frozen, features=features, **{"local.batch_size": str(toy.WIDTH)})
    g.round()
    expected = np.average(features, axis=0, weights=toy.COUNTS)
    np.testing.assert_allclose(g.server.shared["shared"][...], expected, atol=1e-6)
    assert np.abs(expected - features[-1]).max() > 0.1


def test_no_momentum_leaks_between_rounds_or_clients(frozen):
    """Two rounds of one full batch each: with fresh optimisers the second moves as far as the first (fault 3)."""
    features = np.ones((len(toy.COUNTS), 16))
    g = slope(frozen, features=features, **{"local.batch_size": str(toy.WIDTH), "local.momentum": "0.9"})
    g.round(1)
    np.testing.assert_allclose(g.server.shared["shared"][...], 1.0, atol=1e-6)
    g.round(2)
    np.testing.assert_allclose(g.server.shared["shared"][...], 2.0, atol=1e-6)


def test_momentum_does_work_within_a_round(frozen):
    g = slope(frozen, features=np.ones((len(toy.COUNTS), 16)), **{"local.batch_size": "16", "local.momentum": "0.9"})
    g.config = toy.settings(**{"local.learning_rate": "1.0", "local.batch_size": "16", "local.epochs": "2"})
    g.plan = g.plan._replace(local=g.plan.local.__class__.of(g.config))
    g.round()
    np.testing.assert_allclose(g.server.shared["shared"][...], 1 + 1.9, atol=1e-5)


@pytest.mark.parametrize("mu", [0.0, 0.25])
def test_proximal_term_has_a_gradient(frozen, mu):
    """Two steps of slope 1 at rate 1: 1, then 1 + (1 - mu x 1). Zero gradient would give 2 (fault 2)."""
    g = slope(
        frozen,
        features=np.ones((len(toy.COUNTS), 16)),
        **{"local.batch_size": str(toy.WIDTH), "local.epochs": "2", "local.proximal_weight": str(mu)},
    )
    g.round()
    np.testing.assert_allclose(g.server.shared["shared"][...], 2 - mu, atol=1e-6)
    np.testing.assert_allclose(g.kept[0]["private"][...], 2.0, atol=1e-6)


def test_padding_rows_and_padding_clients_change_nothing(frozen):
    plain, padded = (game("fedrsclip", frozen) for _ in range(2))
    ids = np.asarray([2, 0, 5])
    plain.round(slots=ids)
    slots = np.asarray([-1, 2, 0, -1, 5, -1])
    table = toy.members(slots, filler=40)  # padding points at somebody else's image
    figures = padded.round(slots=slots, table=table)
    assert_close(padded.server.shared, plain.server.shared, 1e-7)
    assert_close([padded.kept[k] for k in ids], [plain.kept[k] for k in ids], 1e-7)
    assert figures["images"] == sum(toy.COUNTS[k] for k in ids)


def test_neither_slot_nor_lane_nor_device_matters_to_a_client(frozen):
    one = game("fedrsclip", frozen)
    many = game("fedrsclip", frozen, devices=4, lanes=2)
    one.round(slots=np.arange(8))
    many.round(slots=np.asarray([7, 3, 1, 5, 0, 6, 2, 4]))
    assert_close([many.kept[k] for k in range(8)], [one.kept[k] for k in range(8)], 1e-6)
    assert_close(many.server.shared, one.server.shared, 1e-6)


def test_who_does_not_answer_is_left_out_and_keeps_its_private_prompt(frozen):
    g, without = (game("fedrsclip", frozen) for _ in range(2))
    ids = np.asarray([0, 1, 2])
    before = jax.tree.map(jnp.copy, g.private(1))
    g.round(slots=ids, answering=np.asarray([True, False, True]))
    without.round(slots=np.asarray([0, 2]))
    assert_close(g.server.shared, without.server.shared, 1e-7)
    assert_close(g.kept[1], before, 0)


def test_what_does_not_count_may_be_nan():
    """0 x NaN is NaN: one client that failed would otherwise take the whole average with it."""
    values = jnp.asarray([[1.0, 2.0], [jnp.nan, jnp.inf], [3.0, 4.0]])
    np.testing.assert_allclose(weighted_sum(values, jnp.asarray([1.0, 0.0, 2.0])), [7.0, 10.0])


def test_a_round_without_an_answer_leaves_the_state_unchanged(frozen):
    g = game("fedrsclip", frozen)
    before = jax.tree.map(jnp.copy, g.server.shared)
    figures = g.round(slots=np.asarray([0, 1]), answering=np.zeros(2, bool))
    assert_close(g.server.shared, before, 0)
    assert figures["images"] == 0
    assert np.isfinite(list(figures.values())).all()


@pytest.mark.parametrize("optimizer", ["momentum", "adam", "yogi"])
def test_server_optimisers_step_along_the_mean_change(frozen, optimizer):
    overrides = {"server.optimizer": optimizer, "local.batch_size": "16"}
    g = slope(frozen, features=np.ones((len(toy.COUNTS), 16)), **overrides)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam and Yogi raise a float to an integer power
        g.round(1)
        first = np.asarray(g.server.shared["shared"][...])
        g.round(2)
    second = np.asarray(g.server.shared["shared"][...]) - first
    assert (first > 0).all()
    assert (second > 0).all()
    if optimizer == "momentum":  # FedAvgM: 1, then 1 + 0.9
        np.testing.assert_allclose([first, second], [np.ones(16), 1.9 * np.ones(16)], atol=1e-5)


def test_figures_are_means_over_images(frozen):
    """At rate 0 the loss of a round is the loss of all images at once."""
    g = game("promptfl", frozen, devices=2, **{"local.learning_rate": "0.0"})
    figures = g.round()
    everything = Batch(g.data.features[0], g.data.labels, jnp.ones(sum(toy.COUNTS), bool))
    loss, expected = nnx.merge(g.graph, g.shared, g.private(0)).loss(everything, frozen, Weights(0.0, 0.0))
    assert figures["loss"] == pytest.approx(float(loss), abs=1e-5)
    assert figures["accuracy"] == pytest.approx(float(expected["accuracy"]), abs=1e-6)


def test_a_variable_that_nobody_owns_is_refused(frozen):
    class Stray(toy.Slope):
        def __init__(self, key):
            super().__init__(key)
            self.stray = nnx.Param(jnp.zeros(2))

    with pytest.raises(ValueError, match=r"[Nn]on-exhaustive"):
        toy.Game(Stray, toy.settings(), frozen, toy.dataset())

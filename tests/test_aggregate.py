"""The server's averages against plain NumPy, with clients that do not answer, and with clients that send garbage."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

from fedrsclip_jax.config import Config, keys, resolve
from fedrsclip_jax.federated.aggregate import (
    Server,
    ServerPlan,
    aggregate,
    aggregator,
    check,
    clip_update,
    needs_every_update,
    server_optimizer,
    start_server,
    step_server,
)
from fedrsclip_jax.federated.mesh import AXIS, SAME, SPLIT, make_mesh, spread
from fedrsclip_jax.federated.sums import ordered_weighted_sum, weighted_sum

pytestmark = pytest.mark.newest

PLANS = {
    "mean": ServerPlan("mean"),
    "norm_clipped_mean": ServerPlan("norm_clipped_mean", client_norm=3.0),
    "median": ServerPlan("median"),
    "trimmed_mean": ServerPlan("trimmed_mean", trim=0.29),
    "krum": ServerPlan("krum", faulty=2),
    "multi_krum": ServerPlan("multi_krum", faulty=2),
}
EVERY = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def changes(clients: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Changes of two variables; lengths about 3."""
    rng = np.random.default_rng(seed)
    return {
        "prompt": rng.normal(size=(clients, 2, 3)).astype(np.float32),
        "bias": rng.normal(size=(clients, 3)).astype(np.float32),
    }


def flat(tree) -> np.ndarray:
    """One row a client, or one vector."""
    leading = np.shape(tree["bias"])[:-1]
    return np.concatenate([np.asarray(tree[name]).reshape(*leading, -1) for name in sorted(tree)], axis=-1)


def run(plan: ServerPlan, deltas, weights) -> np.ndarray:
    deltas = jax.tree.map(jnp.asarray, deltas)
    mean = jax.jit(aggregate, static_argnums=0)(plan, deltas, jnp.asarray(weights, jnp.float32))
    assert jax.tree.map(jnp.shape, mean) == jax.tree.map(lambda leaf: leaf.shape[1:], deltas)
    return flat(mean)


def expected(plan: ServerPlan, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The same in NumPy, from the papers, over the rows that count."""
    rows, weights = rows[weights > 0].astype(np.float64), weights[weights > 0]
    count = len(rows)
    if plan.aggregator == "norm_clipped_mean":
        rows = np.stack([row / max(1.0, np.linalg.norm(row) / plan.client_norm) for row in rows])
    if not needs_every_update(plan):
        return np.average(rows, axis=0, weights=weights)
    if plan.aggregator == "median":
        return np.median(rows, axis=0)
    if plan.aggregator == "trimmed_mean":
        cut = int(count * 29 // 100)
        return np.sort(rows, axis=0)[cut : count - cut].mean(axis=0)
    scores = []
    for i, row in enumerate(rows):
        distances = sorted(float(np.sum((row - other) ** 2)) for j, other in enumerate(rows) if j != i)
        scores.append(sum(distances[: max(count - plan.faulty - 2, 1)]))
    chosen = 1 if plan.aggregator == "krum" else max(count - plan.faulty - 2, 1)
    return rows[np.argsort(scores, kind="stable")[:chosen]].mean(axis=0)


# Against NumPy ------------------------------------------------------------------------------------------


@EVERY
@settings(deadline=None, derandomize=True, max_examples=60)
@given(weights=st.lists(st.integers(0, 40), min_size=13, max_size=13).filter(any), seed=st.integers(0, 100))
def test_aggregators_are_what_the_papers_say_of_whoever_answers(plan, weights, seed):
    """Two to thirteen answers, or one; rows of the others hold NaN, infinities and 1e30, and 13 x 0.29 is cut to 3."""
    deltas, weights = changes(len(weights), seed), np.asarray(weights)
    reference = expected(plan, flat(deltas), weights)
    for leaf in deltas.values():
        silent = np.flatnonzero(weights == 0)
        leaf[silent[0::4]], leaf[silent[1::4]], leaf[silent[2::4]] = np.nan, np.inf, 1e30
    # Sums of thirteen numbers of size 1 in single precision.
    np.testing.assert_allclose(run(plan, deltas, weights), reference, atol=2e-6)


@EVERY
@pytest.mark.parametrize("clients", [1, 4])
def test_a_single_answer_is_the_average(plan, clients):
    deltas, weights = changes(clients), np.zeros(clients)
    weights[-1] = 7
    for leaf in deltas.values():
        leaf[:-1] = np.nan
        leaf[-1] /= 2  # shorter than the norm that is clipped to
    np.testing.assert_allclose(run(plan, deltas, weights), flat(deltas)[-1], rtol=1e-6)


@EVERY
def test_no_answer_is_no_change(plan):
    deltas = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), changes(5))
    np.testing.assert_array_equal(run(plan, deltas, np.zeros(5)), np.zeros(9))


@EVERY
def test_equal_changes_average_to_themselves(plan):
    deltas = jax.tree.map(lambda leaf: np.repeat(leaf[:1] / 2, 8, axis=0), changes(1))
    # 0.29 of 8 cuts two at each end; a sixth or a third of a number is not exact.
    np.testing.assert_allclose(run(plan, deltas, np.arange(1, 9)), flat(deltas)[0], rtol=1e-6)


def test_of_equal_krum_scores_the_first_client_is_taken():
    """Corners of a square: each has two neighbours at 1 and one at 2."""
    corners = {"bias": np.asarray([[0, 0], [1, 0], [0, 1], [1, 1]], np.float32)}
    np.testing.assert_array_equal(run(ServerPlan("krum", faulty=0), corners, np.ones(4)), [0, 0])
    np.testing.assert_array_equal(run(ServerPlan("krum", faulty=0), corners, [0, 1, 1, 1]), [1, 0])
    np.testing.assert_array_equal(run(ServerPlan("multi_krum", faulty=0), corners, np.ones(4)), [0.5, 0])


def test_means_weight_by_images_and_the_others_treat_clients_alike():
    deltas, alike, uneven = changes(9), np.ones(9), np.arange(1, 10)
    for name, plan in PLANS.items():
        same = np.array_equal(run(plan, deltas, alike), run(plan, deltas, uneven))
        assert same == (name not in ("mean", "norm_clipped_mean")), name


@pytest.mark.parametrize("name", sorted(PLANS.keys() - {"mean"}))  # a sum; where it is not finite the run stops
def test_numbers_near_the_largest_stay_finite(name):
    """Their squares and sums are beyond single precision."""
    deltas = jax.tree.map(lambda leaf: np.where(leaf > 0, 3e38, -3e38).astype(np.float32), changes(7))
    assert np.isfinite(run(PLANS[name], deltas, np.ones(7))).all()


@EVERY
def test_other_clients_answering_compiles_nothing_anew(plan):
    traces = []

    def traced(deltas, weights):
        traces.append(1)
        return aggregate(plan, deltas, weights)

    compiled = jax.jit(traced)
    deltas = jax.tree.map(jnp.asarray, changes(6))
    for weights in (np.ones(6), np.arange(6), np.zeros(6)):
        compiled(deltas, jnp.asarray(weights, jnp.float32))
    assert len(traces) == 1


# Faulty clients -----------------------------------------------------------------------------------------

ATTACKS = {
    "sign flip": lambda rows, rng: -rows,
    "scaled by 100": lambda rows, rng: 100 * rows,
    "scaled sign flip": lambda rows, rng: -100 * rows,
    "random": lambda rows, rng: rng.normal(size=rows.shape, scale=100),
    "all equal": lambda rows, rng: np.full_like(rows, 10.0),
    "huge": lambda rows, rng: np.full_like(rows, 1e30),
}
CLIENTS, FAULTY, WIDTH = 20, 4, 50


def attacked(attack: str, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, float]:
    """Changes of all clients, the honest mean, and how far the honest clients lie from it at most.

    Honest clients agree on a direction of length 14 and differ by about 1.4.
    """
    rng = np.random.default_rng(seed)
    rows = 2.0 + rng.normal(size=(CLIENTS, WIDTH), scale=0.2)
    faulty = rng.permutation(CLIENTS)[:FAULTY]
    honest = np.delete(rows, faulty, axis=0)
    rows[faulty] = ATTACKS[attack](rows[faulty], rng)
    middle = honest.mean(axis=0)
    return {"bias": rows.astype(np.float32)}, middle, float(np.linalg.norm(honest - middle, axis=1).max())


ROBUST = {
    "median": ServerPlan("median"),
    "trimmed_mean": ServerPlan("trimmed_mean", trim=FAULTY / CLIENTS),
    "krum": ServerPlan("krum", faulty=FAULTY),
    "multi_krum": ServerPlan("multi_krum", faulty=FAULTY),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_fifth_of_the_clients_breaks_the_mean_and_not_the_others(attack, seed):
    deltas, middle, spread = attacked(attack, seed)
    distance = {
        name: np.linalg.norm(run(plan, deltas, np.ones(CLIENTS)) - middle)
        for name, plan in {"mean": ServerPlan(), **ROBUST}.items()
    }
    assert distance.pop("mean") > 2 * spread
    assert {name: far for name, far in distance.items() if far > spread} == {}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_norm_bounds_how_far_faulty_clients_carry_the_mean(attack):
    """A fifth of the weight moves it by two fifths of the norm at most, which is no defence against a turned sign."""
    deltas, middle, _ = attacked(attack, 0)
    norm = float(np.linalg.norm(middle))
    plan = ServerPlan("norm_clipped_mean", client_norm=norm)
    mean = run(plan, deltas, np.ones(CLIENTS))
    # Beside that, clipping shortens honest changes that are longer than usual: by under 2 % here.
    assert np.linalg.norm(mean - middle) < (2 * FAULTY / CLIENTS + 0.02) * norm


def test_one_more_faulty_client_than_assumed_breaks_krum():
    """So the bound is no caution of ours: 5 of 11 who agree are closer to each other than the honest are."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(11, WIDTH)).astype(np.float32)
    rows[:5] = 50.0
    assert np.abs(run(ServerPlan("krum", faulty=4), {"bias": rows}, np.ones(11))).max() < 10
    assert np.abs(run(ServerPlan("krum", faulty=6), {"bias": rows}, np.ones(11))).max() == 50


# Clipping and chaining ----------------------------------------------------------------------------------


def test_one_change_is_clipped_as_a_whole():
    plan = ServerPlan("norm_clipped_mean", client_norm=1.0)
    delta = {"a": jnp.asarray([3.0]), "b": jnp.asarray([[0.0, 4.0]])}
    np.testing.assert_allclose(clip_update(plan, delta)["b"], [[0.0, 0.8]], rtol=1e-6)
    assert flat_equal(clip_update(ServerPlan("median"), delta), delta)
    short = jax.tree.map(lambda leaf: leaf / 8, delta)
    assert flat_equal(clip_update(plan, short), short), "a short change is left alone to the bit"
    nothing = jax.tree.map(jnp.zeros_like, delta)
    assert flat_equal(clip_update(plan, nothing), nothing)
    huge = clip_update(plan, jax.tree.map(lambda leaf: leaf * 1e37, delta))
    np.testing.assert_allclose(huge["a"], [0.6], rtol=1e-5)


def flat_equal(one, other) -> bool:
    return all(jax.tree.leaves(jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), one, other)))


def test_summing_clipped_changes_is_the_clipped_mean():
    """What a round does that does not gather changes: clip in the lane, add by weight, divide."""
    plan, deltas, weights = PLANS["norm_clipped_mean"], jax.tree.map(jnp.asarray, changes(6)), jnp.arange(6.0)
    clipped = jax.vmap(lambda delta: clip_update(plan, delta))(deltas)
    summed = jax.tree.map(lambda leaf: leaf / jnp.sum(weights), weighted_sum(clipped, weights))
    np.testing.assert_allclose(flat(summed), run(plan, deltas, weights), atol=1e-6)


@pytest.mark.parametrize(
    ("plan", "optimizer"),
    [*((plan, "momentum") for plan in PLANS.values()), *((PLANS["median"], name) for name in ("sgd", "adam", "yogi"))],
)
def test_aggregator_clipping_and_optimiser_are_one_optax_chain(plan, optimizer):
    plan = ServerPlan(plan.aggregator, optimizer, 0.5, plan.client_norm, plan.faulty, plan.trim)
    rate = jnp.asarray(0.5)
    chain = optax.chain(aggregator(plan), server_optimizer(plan, rate))
    shared = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), changes(1))
    state, server, chained = chain.init(shared), start_server(plan, shared), shared
    for seed in range(3):
        deltas, weights = jax.tree.map(jnp.asarray, changes(7, seed)), jnp.arange(7.0)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam and Yogi raise a float to an integer power
            updates, state = chain.update(deltas, state, chained, weights=weights)
            server = step_server(plan, rate, server, aggregate(plan, deltas, weights))
        chained = optax.apply_updates(chained, updates)
    np.testing.assert_allclose(flat(chained), flat(server.shared), rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "yogi"])
def test_fedadam_and_fedyogi_by_hand(name):
    """Two steps of Reddi et al.'s Algorithm 2 with Optax's correction of bias: changes 0.2 and -0.1, rate 0.5."""
    plan, rate = ServerPlan("mean", name), jnp.asarray(0.5)
    server = start_server(plan, {"a": jnp.zeros(1)})
    first, second, there, expected = 0.0, 1e-6 if name == "yogi" else 0.0, 0.0, []
    for step, change in enumerate((0.2, -0.1), start=1):
        with jax.numpy_dtype_promotion("standard"):
            server = step_server(plan, rate, server, {"a": jnp.asarray([change])})
        first = 0.9 * first + 0.1 * change
        if name == "adam":
            second = 0.99 * second + 0.01 * change**2
        else:
            second -= 0.01 * np.sign(second - change**2) * change**2
        there += 0.5 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.99**step)) + 1e-3)
        expected.append(there)
        assert float(server.shared["a"][0]) == pytest.approx(there, rel=1e-4)
    assert expected[0] > 0.4, "far beyond the change itself: the rate is a step's length"


def test_the_average_is_clipped_before_the_optimiser_sees_it():
    shared = {"a": jnp.zeros(2)}
    plan = ServerPlan(optimizer="momentum", clip_norm=1.0)
    server = start_server(plan, shared)
    for _ in range(2):
        server = step_server(plan, jnp.asarray(1.0), server, {"a": jnp.asarray([30.0, 40.0])})
    # Velocities 1 and 1.9 in units of the clipped change.
    np.testing.assert_allclose(server.shared["a"], [0.6 * 2.9, 0.8 * 2.9], rtol=1e-6)


def test_plain_averaging_adds_the_mean_to_the_bit():
    """FedAvg by way of an optimiser loses nothing: two negations are exact."""
    shared, mean = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), (changes(1), changes(1, 1)))
    server = step_server(ServerPlan(), jnp.asarray(1.0), start_server(ServerPlan(), shared), mean)
    assert isinstance(server, Server)
    assert flat_equal(server.shared, jax.tree.map(jnp.add, shared, mean))


# Order --------------------------------------------------------------------------------------------------


def test_an_ordered_sum_is_added_client_by_client():
    """1e8 + 1 is 1e8 in single precision, so every other order ends elsewhere."""
    values = jnp.asarray([[1e8], [1.0], [-1e8], [1.0], [np.nan]], jnp.float32)
    assert ordered_weighted_sum(values, jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0])) == 1.0
    assert ordered_weighted_sum(values[jnp.asarray([0, 2, 1, 3, 4])], jnp.asarray([1.0, 1.0, 1.0, 1.0, 0.0])) == 2.0


@EVERY
def test_averages_are_the_same_bits_on_any_number_of_devices(plan):
    """Changes lie on the devices that trained them and are gathered, as in a round."""
    deltas, weights = jax.tree.map(jnp.asarray, changes(16)), jnp.arange(16.0)
    results = []
    for devices in (1, 2, 4, 8):
        mesh = make_mesh(devices)

        def on_device(deltas, weights, share=16 // devices):
            def table(leaf):
                whole = jnp.zeros((16, *leaf.shape[1:]))
                start = jax.lax.axis_index(AXIS) * share
                return jax.lax.psum(
                    jax.lax.dynamic_update_slice_in_dim(jax.lax.pcast(whole, AXIS, to="varying"), leaf, start, 0), AXIS
                )

            return aggregate(plan, *jax.tree.map(table, (deltas, weights)))

        mapped = jax.jit(jax.shard_map(on_device, mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=SAME))
        results.append(flat(mapped(*spread(mesh, (deltas, weights)))))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0], other)
    np.testing.assert_allclose(results[0], run(plan, deltas, weights), atol=1e-6)


def test_clipping_and_ordered_sums_work_on_values_that_vary_over_devices():
    mesh, plan = make_mesh(4), PLANS["norm_clipped_mean"]

    def on_device(deltas, weights):
        clipped = jax.vmap(lambda delta: clip_update(plan, delta))(deltas)
        sums = weighted_sum(clipped, weights), ordered_weighted_sum(clipped, weights)
        return jax.lax.psum(sums, AXIS)

    deltas, weights = jax.tree.map(jnp.asarray, changes(8)), jnp.arange(8.0)
    mapped = jax.shard_map(on_device, mesh=mesh, in_specs=(SPLIT, SPLIT), out_specs=PartitionSpec())
    for total in jax.jit(mapped)(*spread(mesh, (deltas, weights))):
        np.testing.assert_allclose(flat(total) / 28, run(plan, deltas, weights), atol=1e-6)


# Configuration ------------------------------------------------------------------------------------------


def test_a_plan_says_what_the_configuration_says():
    values = {"aggregator": "multi_krum", "optimizer": "adam", "clip_norm": 2.0, "faulty": 3, "trim": 0.2}
    plan = ServerPlan.of(resolve(Config, {"server": values}))
    assert plan == ServerPlan("multi_krum", "adam", 2.0, 0.0, 3, 0.2)
    assert hash(plan) == hash(ServerPlan("multi_krum", "adam", 2.0, 0.0, 3, 0.2))
    assert ServerPlan.of(Config()) == ServerPlan()


def test_every_name_that_the_configuration_allows_is_known():
    (among,) = (f.metadata["among"] for name, _, f in keys(Config) if name == "server.aggregator")
    assert among == tuple(PLANS)
    assert [needs_every_update(PLANS[name]) for name in among] == [False, False, True, True, True, True]


def test_clipping_to_nothing_is_refused(refused):
    with refused("norm_clipped_mean", "server.client_norm"):
        ServerPlan.of(resolve(Config, {"server": {"aggregator": "norm_clipped_mean"}}))


@pytest.mark.parametrize("name", ["krum", "multi_krum"])
def test_krum_wants_enough_clients(name, refused):
    check(ServerPlan(name, faulty=4), 11)
    with refused(name, "11", "10", "server.faulty to at most 3"):
        check(ServerPlan(name, faulty=4), 10)
    with refused(name, "3", "2", "draw more clients"):
        check(ServerPlan(name, faulty=0), 2)


def test_a_trimmed_mean_that_trims_nobody_is_refused(refused):
    check(ServerPlan("trimmed_mean", trim=0.1), 10)
    with refused("server.trim = 0.1", "9 clients", "1/9"):
        check(ServerPlan("trimmed_mean", trim=0.1), 9)
    with refused("draw more clients", "median"):
        check(ServerPlan("trimmed_mean", trim=0.49), 2)


def test_other_aggregators_take_any_cohort():
    for name in ("mean", "norm_clipped_mean", "median"):
        check(PLANS[name], 1)


@pytest.mark.parametrize(("key", "value"), [("trim", 0.5), ("faulty", -1), ("clip_norm", -1.0), ("client_norm", -0.1)])
def test_values_out_of_range_are_refused(key, value, refused):
    with refused(f"server.{key}", value):
        resolve(Config, {"server": {key: value}})


@pytest.mark.parametrize("name", ["mean", "norm_clipped_mean", "median", "trimmed_mean", "krum", "multi_krum"])
def test_a_method_that_shares_nothing_has_nothing_to_average(name):
    plan = ServerPlan(aggregator=name, client_norm=1.0)
    assert clip_update(plan, {}) == {}
    assert aggregate(plan, {}, jnp.ones(7)) == {}

"""The engine: dispatches, windows and devices change nothing but the time a run takes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated import engine as engines
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort
from fedrsclip_jax.federated.engine import Engine
from fedrsclip_jax.federated.round import run_rounds
from fedrsclip_jax.methods import METHODS
from tests import toy

pytestmark = pytest.mark.newest

OFFSETS = np.concatenate([[0], np.cumsum(toy.COUNTS)])
IMAGES = np.arange(OFFSETS[-1], dtype=np.int32)
PARTIAL = {"cohort": "4", "dropout": "0.3"}


@pytest.fixture(scope="module")
def frozen(tiny_folder):
    return toy.backbone(tiny_folder)


def engine(frozen, *, data: Dataset | None = None, streamed: bool = False, make=METHODS["fedrsclip"], **keys) -> Engine:
    data = toy.dataset(views=2) if data is None else data
    config = toy.settings(**{"rounds": "6", "spmd.devices": "1", **keys})
    features, labels = np.asarray(data.features), np.asarray(data.labels)
    clients = PartitionedClients(Partition(IMAGES, OFFSETS, IMAGES, OFFSETS))
    return Engine(
        config,
        make,
        frozen,
        None,
        clients,
        supply=lambda rows: Dataset(features[:, rows], labels[rows]),
        resident=None if streamed else lambda: data,
    )


def run(engine: Engine, most: int = 6) -> list:
    """All rounds, at most so many in a dispatch."""
    done = []
    while len(done) < engine.config.rounds:
        done += engine.advance(len(done) + 1, min(most, engine.config.rounds - len(done)))
    return done


@pytest.fixture
def accelerator(monkeypatch):
    """Gives the devices of the tests a name and a memory that they do not have."""

    def pretend(limit: int | None) -> None:
        monkeypatch.setattr(engines, "platform_of", lambda mesh: "gpu")
        monkeypatch.setattr(engines, "memory_limit", lambda mesh: limit)

    return pretend


@pytest.fixture
def compilations(monkeypatch) -> list[int]:
    """Lanes of each program that an engine compiles to look at it."""
    lanes, compiled = [], Engine.compiled

    def counted(self):
        lanes.append(self.lanes)
        return compiled(self)

    monkeypatch.setattr(Engine, "compiled", counted)
    return lanes


def slope(config, backbone, key, start):
    return toy.Slope(key)


@pytest.mark.optimised
@pytest.mark.parametrize("keys", [{}, PARTIAL, {**PARTIAL, "spmd.clients_per_device": "3"}])
def test_rounds_of_a_dispatch_change_no_bit(frozen, keys):
    one, many = engine(frozen, **keys), engine(frozen, **keys)
    many._pace = 4
    alone, together = run(one, most=1), run(many)
    assert one.digest() == many.digest()
    assert [done.figures for done in alone] == [done.figures for done in together]
    assert [(d.clients, d.answered, d.steps) for d in alone] == [(d.clients, d.answered, d.steps) for d in together]


@pytest.mark.optimised
@pytest.mark.parametrize("keys", [{}, PARTIAL, {**PARTIAL, "spmd.devices": "4"}])
def test_streamed_images_change_no_bit(frozen, keys):
    resident, streamed = engine(frozen, **keys), engine(frozen, streamed=True, **keys)
    run(resident)
    run(streamed)
    assert streamed.plan.streamed
    assert resident.digest() == streamed.digest()


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("keys", [{}, PARTIAL])
def test_one_program_serves_a_run(frozen, keys, streamed):
    before = run_rounds._cache_size()
    federation = engine(frozen, streamed=streamed, **{**keys, "local.batch_size": "3"})
    run(federation)
    assert run_rounds._cache_size() == before + 1


@pytest.mark.optimised
@pytest.mark.parametrize("limit", [None, 6 * 2**10])
def test_rounds_of_a_dispatch_have_room_for_private_variables(frozen, monkeypatch, limit):
    """Those of Slope are 64 bytes a client. Nine fit, which is two cohorts; of more it takes all ten."""
    keys = {**PARTIAL, "spmd.clients_per_device": "1"}
    plenty = engine(frozen, make=slope, **keys)
    monkeypatch.setattr(engines, "memory_limit", lambda mesh: limit)
    monkeypatch.setattr(engines, "PRIVATE_BYTES", 9 * 64)
    scarce = engine(frozen, make=slope, **keys)
    plenty._pace = scarce._pace = 5
    assert [len(plenty.advance(1, 5)), len(scarce.advance(1, 5))] == [5, 2]
    assert [plenty._planner.rows, scarce._planner.rows] == [10, 8]
    scarce.advance(3, 2)
    scarce.advance(5, 1)
    assert scarce.digest() == plenty.digest()


@pytest.mark.parametrize("keys", [{}, {**PARTIAL, "spmd.devices": "2"}])
def test_nothing_moves_between_host_and_devices_during_a_dispatch(frozen, keys):
    """`advance` forbids it; here a number that still lies on the host shows that it does."""
    federation = engine(frozen, **keys)
    federation.advance(1, 1)
    federation.hyper = jax.tree.map(np.asarray, federation.hyper)
    with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
        federation.advance(2, 2)


def bytes_needed(engine: Engine) -> int:
    needed = engine.compiled().memory_analysis()
    return needed.argument_size_in_bytes + needed.temp_size_in_bytes


def test_lanes_of_an_accelerator_are_as_many_as_fit(frozen, accelerator, compilations):
    """Nineteen steps, of which the longest client has three, keep six lanes busy."""
    accelerator(None)
    assert engine(frozen).lanes == 6
    assert compilations == [], "nobody says how much memory there is"
    accelerator(2**40)
    assert engine(frozen).lanes == 6
    assert compilations == [6]

    limit = int(bytes_needed(engine(frozen, **{"spmd.clients_per_device": "3"})) / engines.LANES_SHARE) + 1
    compilations.clear()
    accelerator(limit)
    fewer = engine(frozen)
    assert compilations[0] == 6
    assert len(compilations) <= 2
    # Not just three: XLA's memory grows with lanes in steps of different height.
    assert 2 <= fewer.lanes <= 3
    assert bytes_needed(fewer) <= engines.LANES_SHARE * limit
    accelerator(0)
    assert engine(frozen).lanes == 1


def test_who_asks_for_lanes_gets_them_without_a_search(frozen, accelerator, compilations):
    accelerator(0)
    assert engine(frozen, **{"spmd.clients_per_device": "5"}).lanes == 5
    assert engine(frozen, **{"spmd.ordered_reduce": "true"}).lanes == 1
    assert compilations == []


def test_a_program_that_was_looked_at_is_the_one_that_runs(frozen, accelerator, compilations):
    """Looking for lanes costs nothing where the most of them fit: the first dispatch has its program already."""
    built = []

    def listen(event: str, seconds: float, **_) -> None:
        built.append(event)

    accelerator(2**40)
    federation = engine(frozen, **{"local.batch_size": "5"})  # a program that no other test has compiled
    assert len(compilations) == 1
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        federation.advance(1, 1)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert not any(event.endswith("backend_compile_duration") for event in built)


@pytest.mark.optimised
def test_a_saved_state_goes_on_as_it_would_have(frozen):
    through, again = engine(frozen, **PARTIAL), engine(frozen, **PARTIAL)
    for number in range(1, 4):
        through.advance(number, 1)
    server, state = jax.tree.map(np.asarray, through.server), through.population.state()
    again.advance(1, 2)  # whatever was done before is forgotten
    again.restore(server, state)
    for number in range(4, 7):
        through.advance(number, 1)
        again.advance(number, 1)
    np.testing.assert_array_equal(again.server.shared["shared"][...], through.server.shared["shared"][...])
    ids = state["ids"]
    for a, b in zip(*(jax.tree.leaves(e.population.gather(ids)) for e in (again, through)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("keys", [{}, {"spmd.devices": "4"}])
def test_only_who_has_answered_took_part_and_is_kept(frozen, keys):
    """Who was drawn and never answered has the private variables that it always had: no checkpoint holds its row."""
    federation = engine(frozen, cohort="3", dropout="0.6", rounds="3", make=slope, **keys)
    run(federation)
    config, drawn, answered = federation.config, set(), set()
    for number in range(1, config.rounds + 1):
        cohort = draw_cohort(config.seed, number, len(toy.COUNTS), config.cohort)
        drawn |= set(cohort.tolist())
        answered |= set(cohort[draw_answering(config.seed, number, cohort, config.dropout)].tolist())
    assert 0 < len(answered) < len(drawn)
    assert federation.population.took_part.tolist() == sorted(answered)
    assert federation.population.state()["ids"].tolist() == sorted(answered)
    everyone = np.arange(len(toy.COUNTS))
    moved = federation.population.gather(everyone)["private"][...].any(axis=1)
    assert set(everyone[moved].tolist()) == answered


def poisoned(*clients: int) -> Dataset:
    data = toy.dataset()
    features = np.array(data.features)
    for client in clients:
        features[:, toy.rows_of(client)] = np.nan
    return Dataset(jnp.asarray(features), data.labels)


@pytest.mark.parametrize("keys", [{}, {"spmd.devices": "4"}, {"server.aggregator": "median"}])
def test_a_client_that_is_not_finite_is_left_out_and_named(frozen, keys):
    federation = engine(frozen, data=poisoned(3, 6), make=slope, **keys)
    (done,) = federation.advance(1, 1)
    assert done.refused == [3, 6]
    assert done.answered == len(toy.COUNTS) - 2
    assert np.isfinite(list(done.figures.values())).all()
    assert np.isfinite(federation.server.shared["shared"][...]).all()
    private = federation.population.gather(np.arange(len(toy.COUNTS)))["private"][...]
    assert not private[[3, 6]].any(), "it keeps the private variables it had"
    assert private[[0, 1, 2]].any(axis=1).all()
    assert federation.population.took_part.tolist() == [0, 1, 2, 4, 5, 7, 8, 9]


def test_a_run_stops_where_nobody_is_finite_and_keeps_the_last_sound_state(frozen):
    federation = engine(frozen, data=poisoned(*range(len(toy.COUNTS))), make=slope)
    before = np.asarray(federation.server.shared["shared"][...])
    with pytest.raises(InputError, match=r"round 1: .* lower local\.learning_rate"):
        federation.advance(1, 3)
    np.testing.assert_array_equal(federation.server.shared["shared"][...], before)


def test_a_robust_average_sees_every_client(frozen):
    """The median over clients who each move by their own feature."""
    features = np.random.default_rng(5).normal(size=(len(toy.COUNTS), 16)).astype(np.float32)
    data = Dataset(jnp.asarray(np.repeat(features, toy.COUNTS, axis=0)[None]), toy.dataset().labels)
    keys = {"local.learning_rate": "1.0", "local.momentum": "0.0", "local.batch_size": "16"}
    for devices in ("1", "4"):
        federation = engine(
            frozen, data=data, make=slope, **keys, **{"server.aggregator": "median", "spmd.devices": devices}
        )
        federation.advance(1, 1)
        np.testing.assert_allclose(
            federation.server.shared["shared"][...], np.median(features, axis=0), rtol=0, atol=1e-6
        )

"""Runs side by side in one program are the runs alone."""

import jax
import numpy as np
import pytest

from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.engine import LANES_SHARE, Diverged, Engine
from fedrsclip_jax.federated.together import Together, devices_of_a_run, run_together, signature
from fedrsclip_jax.methods import METHODS
from tests import toy

SAME = 1e-5  # on prompts: the same sums, in programs that order them differently
# Steps carry a difference on and can make it grow: seen is 2e-5 of the largest movement (fifteen steps, JAX 0.12).
OF_MOVEMENT = 3e-5
IMAGES = np.arange(sum(toy.COUNTS), dtype=np.int32)
RUNS = (
    {"method.pacl_weight": "0.0"},
    {"method.pacl_weight": "2.0", "seed": "5"},
    {"local.learning_rate": "0.02", "local.momentum": "0.0"},
    {"seed": "9", "server.learning_rate": "0.5", "method.cmfac_weight": "1.0"},
)


@pytest.fixture(scope="module")
def frozen(tiny_folder):
    return toy.backbone(tiny_folder)


def engine(frozen, devices: int, turn: int = 0, **keys) -> Engine:
    """`turn` gives the clients each other's number of images, and so another partition."""
    data = toy.dataset(views=2)
    config = toy.settings(**{"rounds": "5", "spmd.devices": str(devices), **keys})
    offsets = np.concatenate([[0], np.cumsum(np.roll(toy.COUNTS, turn))])
    clients = PartitionedClients(Partition(IMAGES, offsets, IMAGES, offsets))
    method = METHODS[config.method.name]
    return Engine(config, method, frozen, None, clients, lambda rows: Dataset(data.features, data.labels), lambda: data)


def finish(advance, rounds: int = 5) -> list:
    done = []
    while len(done) < rounds:
        done += advance(len(done) + 1, rounds - len(done))
    return done


def finish_together(engines: list[Engine], rounds: int = 5) -> list[list]:
    together, done = Together(engines, jax.devices()), [[] for _ in engines]
    while len(done[0]) < rounds:
        for own, new in zip(done, together.advance(len(done[0]) + 1, rounds - len(done[0])), strict=True):
            own += new
    return done


def check_same(one: Engine, other: Engine, start: Engine) -> None:
    """`start` is as they were before their first round, and tells how far they have moved."""
    ids = one.population.state()["ids"]
    np.testing.assert_array_equal(ids, other.population.state()["ids"])

    def close(ours, theirs, first):
        moved = np.max(np.abs(np.asarray(theirs) - np.asarray(first)), initial=0)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=max(SAME, OF_MOVEMENT * moved))

    jax.tree.map(close, one.server, other.server, start.server)
    jax.tree.map(close, *(each.population.gather(ids) for each in (one, other, start)))


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"cohort": "4", "dropout": "0.3", "spmd.clients_per_device": "2"},
        {"server.aggregator": "median", "server.optimizer": "momentum", "method.name": "promptfl"},
        {"spmd.ordered_reduce": "true", "method.name": "local_coop"},
    ],
    ids=["everyone", "a cohort in two lanes", "median", "ordered"],
)
def test_together_is_alone(frozen, keys, devices, monkeypatch):
    available = jax.devices()[:devices]
    monkeypatch.setattr(jax, "devices", lambda: available)
    share = devices_of_a_run(len(RUNS), devices)
    runs = [engine(frozen, share, turn, **keys, **own) for turn, own in enumerate(RUNS)]
    assert len({signature(run) for run in runs}) == 1
    together = finish_together(runs)
    for turn, (run, done, own) in enumerate(zip(runs, together, RUNS, strict=True)):
        alone = engine(frozen, 1, turn, **keys, **own)
        expected = finish(alone.advance)
        check_same(run, alone, engine(frozen, 1, turn, **keys, **own))
        for ours, theirs in zip(done, expected, strict=True):
            assert ours.figures == pytest.approx(theirs.figures, rel=1e-4, abs=1e-5)
            assert (ours.clients, ours.answered, ours.steps) == (theirs.clients, theirs.answered, theirs.steps)


def test_one_program_serves_all_dispatches_and_values(frozen):
    before = run_together._cache_size()
    for rate in ("0.01", "0.03"):
        runs = [engine(frozen, 2, **own, **{"local.weight_decay": rate, "local.batch_size": "7"}) for own in RUNS]
        together = Together(runs, jax.devices())
        assert [len(done) for done in together.advance(1, 1)] == [1] * 4
        together.advance(2, 2)
    assert run_together._cache_size() == before + 1


def test_lanes_of_all_runs_have_to_fit(frozen, monkeypatch):
    """The room for one lane less than all is asked for; results are those of any number of lanes."""
    keys = {"cohort": "4", "spmd.clients_per_device": "4"}
    runs = [engine(frozen, 1, **keys, **own) for own in RUNS[:2]]
    together = Together(runs, jax.devices()[:1])
    needed = sum(together._needs(4))
    monkeypatch.setattr("fedrsclip_jax.federated.together.memory_limit", lambda mesh: (needed - 1) / LANES_SHARE)
    together.fit_lanes()
    assert {run.lanes for run in runs} <= {1, 2, 3}
    assert sum(together._needs(runs[0].lanes)) < needed
    together.advance(1, 1)
    alone = engine(frozen, 1, **keys, **RUNS[0])
    alone.advance(1, 1)
    check_same(runs[0], alone, engine(frozen, 1, **keys, **RUNS[0]))


def test_only_the_devices_that_are_given_are_used(frozen):
    runs = [engine(frozen, 1, **own) for own in RUNS[:2]]
    together = Together(runs, jax.devices()[:2])
    assert [*together.mesh.devices.flat] == jax.devices()[:2]


def test_a_run_that_diverges_stands_still_and_the_others_go_on(frozen):
    broken = {"local.learning_rate": "1e38"}
    runs = [engine(frozen, 4, **own) for own in ({}, broken)]
    together = Together(runs, jax.devices())
    sound, diverged = together.advance(1, 1)
    assert len(sound) == 1
    assert isinstance(diverged, Diverged)
    assert diverged.before == []
    alone = engine(frozen, 1)
    alone.advance(1, 1)
    check_same(runs[0], alone, engine(frozen, 1))
    fresh = engine(frozen, 1, **broken)
    jax.tree.map(np.testing.assert_array_equal, runs[1].server.shared, fresh.server.shared)


def test_what_does_not_fit_together_is_told_apart(frozen):
    kinds = ({}, {"method.context_tokens": "3"}, {"method.name": "promptfl"}, {"cohort": "3"}, {"local.epochs": "2"})
    assert len({signature(engine(frozen, 1, **keys)) for keys in kinds}) == len(kinds)


@pytest.mark.parametrize(("runs", "devices", "share"), [(4, 8, 2), (3, 8, 8), (16, 8, 1), (1, 4, 4), (6, 4, 2)])
def test_runs_go_over_devices_first(runs, devices, share):
    assert devices_of_a_run(runs, devices) == share

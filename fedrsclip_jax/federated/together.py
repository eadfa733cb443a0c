"""Several federations whose rounds are one program: runs that differ in values, and in no shape.

Devices form two axes, `runs` and `clients`. A device holds some of the runs, and of each of these some of the clients;
what the runs share, images and backbone, it holds once. Its lanes are those of all its runs together. Every run has
the cohorts, batches and averages that it would have alone.
"""

import math
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fedrsclip_jax.federated.aggregate import Server
from fedrsclip_jax.federated.client import Hyper, Members
from fedrsclip_jax.federated.engine import LANES_SHARE, Diverged, Done, Engine, next_pace
from fedrsclip_jax.federated.mesh import AXIS, SAME, fetch, fit_lanes, memory_limit, replicate, spread
from fedrsclip_jax.federated.round import Outcome, RoundPlan, Schedule, rounds_on_device
from fedrsclip_jax.federated.window import Window

RUNS = "runs"
BY_RUN, BY_CLIENT, BY_ROUND = PartitionSpec(RUNS), PartitionSpec(RUNS, AXIS), PartitionSpec(RUNS, None, AXIS)
_SCHEDULE: Any = Schedule._make((BY_ROUND, BY_ROUND, BY_ROUND, BY_ROUND, PartitionSpec(None, AXIS)))
_BATCHED: Any = Schedule._make((0, 0, 0, 0, None))
_OUTCOME: Any = Outcome._make((BY_RUN, BY_RUN, BY_ROUND))


def devices_of_a_run(runs: int, devices: int) -> int:
    """Over how many devices the clients of each of some runs are divided; the runs over the others."""
    return devices // math.gcd(runs, devices)


def signature(engine: Engine) -> tuple:
    """What has to be equal for engines to run together; padded sizes are made to agree."""
    window = engine.window(1, 1)
    shapes = jax.tree.map(
        lambda leaf: (jnp.shape(leaf), leaf.dtype), (engine.server, engine.population.gather(np.zeros(1, np.int64)))
    )
    return engine.plan, jax.tree.structure(shapes), str(shapes), len(window.ids), window.schedule.slots.shape


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def run_together(
    plan: RoundPlan,
    server: Server,
    private: PyTree,
    members: Members,
    schedule: Schedule,
    data: Any,
    backbone: Any,
    hyper: Hyper,
    key: Any,
    first: Any,
    rounds: Any,
) -> tuple[Server, PyTree, Outcome]:
    """`run_rounds` of several runs: whatever differs has a leading axis of runs; `schedule.length` serves all."""

    def on_device(server, private, members, schedule, data, backbone, hyper, key, first, rounds):
        def one(server, private, members, schedule, hyper, key):
            return rounds_on_device(plan, server, private, members, schedule, data, backbone, hyper, key, first, rounds)

        return jax.vmap(one, in_axes=(0, 0, 0, _BATCHED, 0, 0))(server, private, members, schedule, hyper, key)

    return jax.shard_map(
        on_device,
        mesh=plan.mesh,
        in_specs=(BY_RUN, BY_CLIENT, BY_CLIENT, _SCHEDULE, SAME, SAME, BY_RUN, BY_RUN, SAME, SAME),
        out_specs=(BY_RUN, BY_CLIENT, _OUTCOME),
    )(server, private, members, schedule, data, backbone, hyper, key, first, rounds)


class Together:
    """Engines of equal `signature`, on the same images and backbone, that advance side by side."""

    def __init__(self, engines: Sequence[Engine], devices: Sequence[jax.Device]):
        """
        Args:
          engines: each over the first `devices_of_a_run` devices, with its images on them.
          devices: over which runs and their clients are divided.
        """
        self.engines, first = list(engines), engines[0]
        assert not first.plan.streamed, "images of several runs lie on the devices"
        clients = first.plan.mesh.size
        across = math.gcd(len(engines), len(devices) // clients)
        grid = np.asarray(devices[: across * clients]).reshape(across, clients)
        self.mesh = Mesh(grid, (RUNS, AXIS), axis_types=(AxisType.Auto, AxisType.Auto))
        self._data, self._backbone = replicate(self.mesh, (first.data, first.backbone))
        self._hyper = self._put(BY_RUN, _stacked([engine.hyper for engine in engines]))
        keys = np.stack([np.asarray(jax.random.key_data(engine.key)) for engine in engines])
        self._key = jax.random.wrap_key_data(self._put(BY_RUN, keys), impl=jax.random.key_impl(first.key))
        self._pace = 1

    @property
    def plan(self) -> RoundPlan:
        """What is fixed at compile time."""
        return self.engines[0].plan._replace(mesh=self.mesh, runs=RUNS)

    def fit_lanes(self) -> None:
        """Takes fewer lanes of each run where the program of all of them has no room on a device."""
        limit, most = memory_limit(self.mesh), self.engines[0].lanes
        if limit is not None and most > 1:
            self._set_lanes(fit_lanes(most, LANES_SHARE * limit, self._needs))

    def _needs(self, lanes: int) -> tuple[int, int]:
        self._set_lanes(lanes)
        needed = run_together.lower(*self._arguments(self._windows(1, 1), 1, 1)).compile().memory_analysis()
        return (needed.argument_size_in_bytes, needed.temp_size_in_bytes) if needed else (0, 0)

    def _set_lanes(self, lanes: int) -> None:
        for engine in self.engines:
            engine.set_lanes(lanes)

    def advance(self, first: int, most: int) -> list[list[Done] | Diverged]:
        """One dispatch: rounds from `first` on, at most `most`; of each run what `Engine.advance` gives or raises."""
        began = time.perf_counter()
        windows = self._windows(first, min(most, self._pace))
        rounds = min(most, self._pace, *(len(window.cohorts) for window in windows))
        arguments = self._arguments(windows, first, rounds)
        with jax.transfer_guard("disallow"):
            out = run_together(*arguments)
        server, private, outcome = fetch(out)
        spent = time.perf_counter() - began
        self._pace = next_pace(self._pace, spent, min(window.schedule.slots.shape[0] for window in windows))
        done: list[list[Done] | Diverged] = []
        for index, (engine, window) in enumerate(zip(self.engines, windows, strict=True)):
            own = jax.tree.map(lambda leaf, index=index: leaf[index], (server, private, outcome))
            engine.server = replicate(engine.plan.mesh, own[0])
            try:
                done.append(engine.settle(window, spread(engine.plan.mesh, own[1]), own[2], rounds, spent))
            except Diverged as diverged:
                done.append(diverged)
        return done

    def _windows(self, first: int, rounds: int) -> list[Window]:
        return [engine.window(first, rounds) for engine in self.engines]

    def _arguments(self, windows: Sequence[Window], first: int, rounds: int) -> tuple:
        server = self._put(BY_RUN, _stacked([fetch(engine.server) for engine in self.engines]))
        pairs = zip(self.engines, windows, strict=True)
        private = self._put(BY_CLIENT, _stacked([engine.population.gather(window.ids) for engine, window in pairs]))
        members, schedule = self._lay_out(windows)
        number, count = replicate(self.mesh, (np.int32(first), np.int32(rounds)))
        frozen = (self._data, self._backbone, self._hyper, self._key)
        return (self.plan, server, private, members, schedule, *frozen, number, count)

    def _lay_out(self, windows: Sequence[Window]) -> tuple[Members, Schedule]:
        """Members and timetables of all runs, filled up to the widest and the longest."""
        members = [fetch(window.members) for window in windows]
        width = max(each.rows.shape[1] for each in members)
        members = [each._replace(rows=np.pad(each.rows, [(0, 0), (0, width - each.rows.shape[1])])) for each in members]
        schedules, devices = [fetch(window.schedule) for window in windows], self.mesh.shape[AXIS]
        turns = max(each.turns.shape[1] for each in schedules) // devices

        def longer(table: np.ndarray) -> np.ndarray:
            table = table.reshape(len(table), devices, -1, table.shape[2])
            room = [(0, 0), (0, 0), (0, turns - table.shape[2]), (0, 0)]
            return np.pad(table, room, constant_values=-1).reshape(len(table), devices * turns, -1)

        length = np.max([each.length for each in schedules], axis=0)
        schedule = _stacked([each._replace(turns=longer(each.turns), length=length) for each in schedules])
        schedule = schedule._replace(length=length)
        placed = Schedule(*(self._put(spec, table) for spec, table in zip(_SCHEDULE, schedule, strict=True)))
        return self._put(BY_CLIENT, _stacked(members)), placed

    def _put(self, spec: PartitionSpec, tree: PyTree) -> PyTree:
        return jax.device_put(tree, NamedSharding(self.mesh, spec))


def _stacked(trees: Sequence[PyTree]) -> PyTree:
    """One tree with a leading axis of runs, on the host."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *trees)

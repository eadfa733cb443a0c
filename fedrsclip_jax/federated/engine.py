"""The state of a federation and what changes it: the server, the population, the compiled rounds."""

import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int, PRNGKeyArray, PyTree

from fedrsclip_jax import distributed
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import Server, ServerPlan, check, start_server
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan
from fedrsclip_jax.federated.cohort import draw_cohort
from fedrsclip_jax.federated.initial import ROUNDS, initial
from fedrsclip_jax.federated.mesh import (
    choose_lanes,
    fetch,
    fit_lanes,
    make_mesh,
    memory_limit,
    platform_of,
    replicate,
    spread,
)
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import Outcome, RoundPlan, run_rounds, traffic
from fedrsclip_jax.federated.window import Planner, Supply, Window

PATIENCE = 1.0  # seconds a dispatch should take: long against its overhead, short for whoever watches or interrupts
FEATURES_SHARE = 0.4  # of a device's memory that training features may take
PRIVATE_SHARE = 0.1  # that private variables of a dispatch may take; the next one's arrive while they are there
PRIVATE_BYTES = 2**28  # what these may take where the platform does not say how much memory there is
LANES_SHARE = 0.8  # and that these and what lanes remember may take; the rest is for scoring and the next dispatch


class Done(NamedTuple):
    """What a round reports.

    Attributes:
      figures: of the loss, averaged over the images seen.
      clients, answered: drawn, and of these the ones whose update counted.
      refused: numbers of clients that answered with something not finite, and were left out.
      steps: local steps of all clients together.
      wasted: share of lane-steps without work.
      seconds: of wall-clock time.
    """

    figures: dict[str, float]
    clients: int
    answered: int
    refused: list[int]
    steps: int
    wasted: float
    seconds: float


class Diverged(InputError):
    """Prompts or loss are no longer finite; the engine's state is that of the last sound round.

    Attributes:
      before: the sound rounds of the same dispatch.
    """

    def __init__(self, message: str, before: list[Done]):
        super().__init__(message)
        self.before = before


def next_pace(pace: int, spent: float, room: int) -> int:
    """Rounds of the next dispatch, when one of `pace` rounds has taken so many seconds."""
    if spent < PATIENCE:
        return min(2 * pace, room)
    return max(pace // 2, 1) if spent > 2 * PATIENCE else pace


class Engine:
    """A federation of any method; the state changes by `advance` and `restore`.

    Attributes:
      server: what the server keeps, replicated over the devices.
      plan: what is fixed at compile time.
      traffic: what a client sends in a round.
      data: all training images, on the devices; None where those of each dispatch's clients are sent.
      hyper, key: of the run, on the devices.
    """

    def __init__(
        self,
        config: Config,
        make: Callable[[Any, Any, PRNGKeyArray, Any], nnx.Module],
        backbone: Backbone,
        start: Any,
        clients: Clients,
        supply: Supply,
        resident: Callable[[], Dataset] | None,
    ):
        """
        Args:
          make: makes the method's module from (config.method, backbone, key, start).
          start: what prompts start from; any pytree that `make` takes.
          supply: features and labels of images by number, for what does not lie on the devices.
          resident: all training images; None streams those of each dispatch's clients by `supply`.
        """
        self.config, self.clients = config, clients
        graph, shared, self._population = initial(config, make, backbone, start, clients.num_clients)
        self.traffic = traffic(shared)
        mesh = make_mesh(config.spmd.devices)
        server_plan = ServerPlan.of(config)
        self.server: Server = replicate(mesh, start_server(server_plan, shared))
        self.backbone, self.hyper, self.key = replicate(
            mesh, (backbone, Hyper.of(config), jax.random.fold_in(jax.random.key(config.seed), ROUNDS))
        )
        self.data = None if resident is None else replicate(mesh, resident())
        local, spmd = LocalPlan.of(config), config.spmd
        streamed, limit = resident is None, memory_limit(mesh)
        allowed = PRIVATE_BYTES if limit is None else int(PRIVATE_SHARE * limit)
        most_rows = allowed // max(self._population.row_bytes, 1)

        def plan_for(lanes: int) -> tuple[RoundPlan, Planner]:
            planner = Planner(config, clients, local, mesh, lanes, most_rows, supply if streamed else None)
            check(server_plan, planner.size)
            plan = RoundPlan(graph, local, mesh, server_plan, planner.size, spmd.ordered_reduce, streamed)
            return plan, planner

        def needs(lanes: int) -> tuple[int, int]:
            self.set_lanes(lanes)
            needed = self.compiled().memory_analysis()
            return (needed.argument_size_in_bytes, needed.temp_size_in_bytes) if needed else (0, 0)

        self._plan_for = plan_for
        asked, balance = spmd.clients_per_device, _balance(config, clients, local, mesh.size)
        lanes = choose_lanes(asked, *balance, platform_of(mesh), spmd.ordered_reduce)
        if limit is not None and lanes > 1 and not asked:
            lanes = fit_lanes(lanes, LANES_SHARE * limit, needs)
        self.set_lanes(lanes)
        self._aboard: tuple[Int[np.ndarray, " rows"], PyTree] | None = None  # private variables on the devices
        self._unsettled: Bool[np.ndarray, " rows"] | None = None  # which of them the population has not seen
        self._pace = 1  # rounds of the next dispatch

    @property
    def lanes(self) -> int:
        """Clients trained at a time on a device."""
        return self._planner.lanes

    def set_lanes(self, lanes: int) -> None:
        """Trains so many clients at a time from the next dispatch on."""
        self.plan, self._planner = self._plan_for(lanes)
        self._window: Window | None = None  # got ready while the one before it ran

    @property
    def population(self) -> Population:
        """Private variables of all clients, up to date."""
        if self._aboard is not None and self._unsettled is not None:
            ids, private = self._aboard
            self._population.scatter(np.where(self._unsettled, ids, -1), fetch(private))
            self._unsettled = None
        return self._population

    def advance(self, first: int, most: int) -> list[Done]:
        """One dispatch: rounds from `first` on, at least one and at most `most`.

        How many it runs is a matter of time alone; the outcome does not depend on it.

        Raises:
          Diverged: prompts or loss are no longer finite; the state is then that of the last sound round.
        """
        began = time.perf_counter()
        window = self.window(first, min(most, self._pace))
        rounds = min(most, self._pace, len(window.cohorts))
        private = self._board(window.ids)
        arguments = self._arguments(window, private, rounds)
        with jax.transfer_guard("disallow"):  # all that rounds need lies on the devices by now
            self.server, private, outcome = run_rounds(*arguments)
        # The devices are at work; meanwhile the host gets the next dispatch ready.
        left = self.config.rounds - (first + rounds - 1)
        self._window = self._planner.prepare(first + rounds, min(left, 2 * self._pace)) if left > 0 else None
        outcome = fetch(outcome)
        spent = time.perf_counter() - began
        if self._planner.room > 1:
            spent = distributed.exchange(spent)[0]  # every process has to keep the same pace
        self._pace = next_pace(self._pace, spent, self._planner.room)
        return self.settle(window, private, outcome, rounds, spent)

    def window(self, first: int, rounds: int) -> Window:
        """What rounds from `first` on need; that of the next dispatch may be ready."""
        if self._window is None or self._window.first != first:
            self._window = self._planner.prepare(first, rounds)
        return self._window

    def settle(self, window: Window, private: PyTree, outcome: Outcome, rounds: int, spent: float) -> list[Done]:
        """Enters what came back from the devices; `server` is set already.

        Args:
          private: variables of the window's clients after its rounds, on the devices.
          outcome: on the host.
          rounds: of the dispatch.
          spent: seconds on it.

        Raises:
          Diverged: as `advance`.
        """
        sound = int(np.argmin([*outcome.sound[:rounds], False]))
        # Who was drawn and did not answer, or with something not finite, has the variables it had: it took no part.
        counted = window.answering[:sound] & ~outcome.refused[:sound]
        took_part = np.isin(window.ids, window.cohorts[:sound][counted]) & (window.ids >= 0)
        self._unsettled = took_part if self._unsettled is None else took_part | self._unsettled
        self._aboard = (window.ids, private)
        done = []
        for index in range(sound):
            cohort, refused = window.cohorts[index], outcome.refused[index]
            done.append(
                Done(
                    {name: float(values[index]) for name, values in outcome.figures.items()},
                    int(np.sum(cohort >= 0)),
                    int(np.sum(window.answering[index] & ~refused)),
                    sorted(int(client) for client in cohort[refused]),
                    window.steps[index],
                    window.wasted[index],
                    spent / rounds,
                )
            )
        if sound < rounds:
            raise Diverged(
                f"round {window.first + sound}: prompts or loss are no longer finite; lower local.learning_rate = "
                f"{self.config.local.learning_rate}",
                done,
            )
        return done

    def restore(self, server: Server, state: dict[str, Any]) -> None:
        """Goes back to a saved state.

        Args:
          server: as `server` was.
          state: what `population.state()` gave.
        """
        self.server = replicate(self.plan.mesh, server)
        self._population.restore(state)
        self._aboard = self._unsettled = self._window = None

    def compiled(self) -> jax.stages.Compiled:
        """The program of a dispatch, to be read: its collectives, its memory."""
        window = self._planner.prepare(1, 1)
        private = spread(self.plan.mesh, self._population.gather(window.ids))
        return run_rounds.lower(*self._arguments(window, private, 1)).compile()

    def digest(self) -> str:
        """sha256 over the shared prompts and the private ones of every client that has taken part."""
        sha = hashlib.sha256()
        kept = self.population.state()
        leaves = [*jax.tree.leaves(self.server.shared), kept["ids"], *jax.tree.leaves(kept["leaves"])]
        for leaf in leaves:
            sha.update(np.ascontiguousarray(leaf).tobytes())
        return sha.hexdigest()

    def _board(self, ids: Int[np.ndarray, " rows"]) -> PyTree:
        """Private variables of clients on the devices; nothing moves where they lie there already."""
        if self._aboard is not None and np.array_equal(self._aboard[0], ids):
            return self._aboard[1]
        return spread(self.plan.mesh, self.population.gather(ids))

    def _arguments(self, window: Window, private: PyTree, rounds: int) -> tuple:
        return (
            self.plan,
            self.server,
            private,
            window.members,
            window.schedule,
            self.data if window.data is None else window.data,
            self.backbone,
            self.hyper,
            self.key,
            *replicate(self.plan.mesh, (np.int32(window.first), np.int32(rounds))),
        )


def _balance(config: Config, clients: Clients, local: LocalPlan, devices: int) -> tuple[int, int, int]:
    """Of a device in the first round: clients, their steps together, and the steps of the longest."""
    cohort = draw_cohort(config.seed, 1, clients.num_clients, config.cohort)
    steps = np.asarray(local.steps(clients.counts(cohort, "train")))
    return -(-len(cohort) // devices), int(steps.sum()) // devices, int(steps.max(initial=1))

"""The rounds of one dispatch, laid out on the host and sent to the devices: who works, when, on which images."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.federated.client import Dataset, LocalPlan, Members
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort, lay_out, most_turns
from fedrsclip_jax.federated.mesh import SPLIT_BY_ROUND, spread
from fedrsclip_jax.federated.round import Schedule

MOST_ROUNDS = 32  # of a dispatch, if the user does not say

Supply = Callable[[Int[np.ndarray, " images"]], Dataset]  # features and labels of images, by their numbers


class Window(NamedTuple):
    """The rounds that one dispatch may run, the first of which is `first`.

    Attributes:
      ids: clients by row of the private variables and of `members`, -1 is padding.
      members, schedule: on the devices.
      data: images of these clients, on each device those of its own, where the devices do not hold all; else None.
      cohorts: one row a round that may run; ids of the clients of each round by slot, -1 is padding.
      answering: whose update counts, likewise.
      steps: of each round, of all clients together.
      wasted: share of lane-steps without work in each round.
    """

    first: int
    ids: Int[np.ndarray, " rows"]
    members: Members
    schedule: Schedule
    data: Dataset | None
    cohorts: Int[np.ndarray, "rounds slots"]
    answering: Int[np.ndarray, "rounds slots"]
    steps: list[int]
    wasted: list[float]


def packed_images(config: Config, clients: Clients, devices: int) -> int:
    """Rows for the images of one device's clients in any round, where these lie end to end.

    Rounded up, by an eighth at most, to a number that other seeds' clients are likely to share, and with it what is
    compiled.
    """
    size = _cohort(config, clients)
    if size == clients.num_clients:
        counts = clients.counts(np.arange(size), "train")
        members = lay_out(np.asarray(LocalPlan.of(config).steps(counts)), devices, 1).members
        most = int(np.where(members >= 0, counts[members], 0).sum(axis=1).max())
    else:
        most = clients.most_images(-(-size // devices), "train")
    grain = 1 << max(most.bit_length() - 4, 0)
    return max(-(-most // grain) * grain, 1)


def streamed_images(config: Config, clients: Clients, devices: int) -> int:
    """Rows that streamed images take on a device: of everyone they stay, and else the next round's arrive meanwhile."""
    windows = 1 if _cohort(config, clients) == clients.num_clients else 2
    return windows * packed_images(config, clients, devices)


def _cohort(config: Config, clients: Clients) -> int:
    return min(config.cohort or clients.num_clients, clients.num_clients)


class Planner:
    """Lays out windows, all of one shape, so that one compilation serves the run; pure functions of their round."""

    def __init__(
        self,
        config: Config,
        clients: Clients,
        local: LocalPlan,
        mesh: Mesh,
        lanes: int,
        most_rows: int,
        supply: Supply | None = None,
    ):
        """
        Args:
          most_rows: clients whose private variables have room on a device; a round's always have to.
          supply: of images, where the devices do not hold all.
        """
        self.config, self.clients, self.local, self.mesh, self.lanes = config, clients, local, mesh, lanes
        self._supply = supply
        self.size = _cohort(config, clients)
        self.everyone = self.size == clients.num_clients
        self.slots = -(-self.size // mesh.size)
        # Over several devices a client that is drawn again may be laid elsewhere, and its private variables have to
        # come by way of the host, and so do streamed images of another cohort: then a dispatch is one round. Everyone
        # always stays where they are, and on a single device there is nowhere else.
        together = self.everyone or (mesh.size == 1 and supply is None)
        asked = config.spmd.rounds_per_dispatch
        self.room = min(asked or min(config.eval.every, MOST_ROUNDS), config.rounds) if together else 1
        if not self.everyone and clients.num_clients > most_rows:
            self.room = max(1, min(self.room, most_rows // self.slots))
        if self.everyone:
            self.rows = self.slots
        else:
            self.rows = min(self.room * self.slots, clients.num_clients) if mesh.size == 1 else self.slots
        longest = int(local.steps(clients.longest("train")))
        self._turns = None if self.everyone else most_turns(longest, self.slots, lanes)
        self._packed = 0 if supply is None else packed_images(config, clients, mesh.size)
        self._always: Window | None = None
        self._images: tuple[Dataset, np.ndarray] | None = None

    def prepare(self, first: int, rounds: int) -> Window:
        """Rounds `first` to `first + rounds - 1`; at most `room` of them."""
        if self._always is not None:
            return self._always._replace(first=first)
        config, devices = self.config, self.mesh.size
        rounds = min(rounds, self.room)
        cohorts = np.full((rounds, devices, self.slots), -1, np.int64)
        places, turns, length, answering, steps, wasted = [], [], [], [], [], []
        for index in range(rounds):
            cohort = draw_cohort(config.seed, first + index, self.clients.num_clients, config.cohort)
            each = np.asarray(self.local.steps(self.clients.counts(cohort, "train")))
            table = lay_out(each, devices, self.lanes, self._turns)
            cohorts[index] = np.where(table.members >= 0, cohort[table.members], -1)
            places.append(table.members)
            turns.append(table.turns)
            length.append(table.length)
            answering.append(draw_answering(config.seed, first + index, cohorts[index].reshape(-1), config.dropout))
            steps.append(int(each.sum()))
            wasted.append(table.wasted)
        ids, slots = self._rows_of(cohorts)
        rows, counts = self.clients.padded(ids, "train", self.clients.width("train"))
        data = None
        if self._supply is not None:
            data, rows = self._images or self._sent(self._supply, rows, counts)
            if self.everyone:  # they lie where they lay
                self._images = data, rows
        flat = (rounds, -1)
        schedule = Schedule(
            slots=self._filled(slots.reshape(flat)),
            places=self._filled(np.stack(places).reshape(flat)),
            answering=self._filled(np.stack(answering)),
            turns=self._filled(np.stack(turns).reshape(rounds, -1, self.lanes)),
            length=self._filled(np.stack(length)),
        )
        window = Window(
            first,
            ids,
            spread(self.mesh, Members(ids.astype(np.int32), rows, counts)),
            spread(self.mesh, schedule, SPLIT_BY_ROUND),
            data,
            cohorts.reshape(flat),
            np.stack(answering),
            steps,
            wasted,
        )
        if self.everyone and config.dropout == 0 and rounds == self.room:
            self._always = window  # all windows are alike
        return window

    def _sent(
        self, supply: Supply, rows: Int[np.ndarray, "clients width"], counts: Int[np.ndarray, " clients"]
    ) -> tuple[Dataset, Int[np.ndarray, "clients width"]]:
        """Each device's images, one client after another, and the clients' rows among these."""
        columns, owned = np.arange(rows.shape[1]), counts.reshape(self.mesh.size, -1)
        images = np.zeros((self.mesh.size, self._packed), np.int32)
        images[np.arange(self._packed) < owned.sum(axis=1, keepdims=True)] = rows[columns < counts[:, None]]
        data = supply(images.reshape(-1))
        data = Dataset(
            spread(self.mesh, data.features, SPLIT_BY_ROUND), spread(self.mesh, data.labels.astype(np.int32))
        )
        first = (np.cumsum(owned, axis=1) - owned).reshape(-1, 1)
        return data, np.minimum(first + columns, self._packed - 1).astype(np.int32)

    def _filled(self, table: np.ndarray) -> np.ndarray:
        """A table of as many rounds as a dispatch has room for; the rounds that are added do not run."""
        return np.pad(table, [(0, self.room - len(table)), *[(0, 0)] * (table.ndim - 1)])

    def _rows_of(
        self, cohorts: Int[np.ndarray, "rounds devices slots"]
    ) -> tuple[Int[np.ndarray, " rows"], Int[np.ndarray, "rounds devices slots"]]:
        """The clients of each device over all rounds, ascending and padded, and where each slot's client stands."""
        ids = np.full((cohorts.shape[1], self.rows), -1, np.int64)
        slots = np.full(cohorts.shape, -1, np.int32)
        for device in range(len(ids)):
            own = np.unique(cohorts[:, device])
            own = own[own >= 0]
            ids[device, : len(own)] = own
            here = cohorts[:, device]
            slots[:, device] = np.where(here >= 0, np.searchsorted(own, here), -1)
        return ids.reshape(-1), slots

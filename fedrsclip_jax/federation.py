"""The state of one run and what changes it: the server, the population, the compiled round."""

import hashlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_federation
from fedrsclip_jax.federated.aggregate import Server, start_server
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan, Members
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort, lay_out
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import RoundPlan, choose_lanes, make_mesh, replicate, run_round, spread, traffic
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import Private, Shared
from fedrsclip_jax.task import Task

# Streams of the run's key.
_SHARED, _PRIVATE, _ROUNDS = range(3)


class Done(NamedTuple):
    """What a round reports.

    Attributes:
      figures: of the loss, averaged over the images seen.
      clients, answered: drawn, and of these the ones whose update counted.
      steps: local steps of all clients together.
      seconds: of wall-clock time.
    """

    figures: dict[str, float]
    clients: int
    answered: int
    steps: int
    seconds: float


class Federation:
    """The server, the population and the compiled round of one run; the state changes by `round` alone."""

    def __init__(self, config: Config, task: Task, features: Features, clients: Clients):
        backbone = task.backbone(config.method)
        self.config, self.clients, self.labels = config, clients, task.labels
        make = find_method(config.method.name)
        start = task.context_start(config.method)
        key = jax.random.key(config.seed)
        module = make(config.method, backbone, jax.random.fold_in(key, _SHARED), start)
        # A trainable variable that is neither Shared nor Private makes this split fail: nobody would own it.
        graph, shared, _ = nnx.split(module, Shared, Private)

        @jax.jit
        def draw(ids, backbone, start):
            def one(client):
                own = jax.random.fold_in(jax.random.fold_in(key, _PRIVATE), client)
                return nnx.split(make(config.method, backbone, own, start), Shared, Private)[2]

            return jax.vmap(one)(ids)

        self.population = Population(lambda ids: draw(ids, backbone, start), clients.num_clients)
        self.traffic = traffic(shared)

        mesh = make_mesh(config.spmd.devices)
        size = min(config.cohort or clients.num_clients, clients.num_clients)
        lanes = choose_lanes(config.spmd.clients_per_device, size, mesh)
        self.server: Server = replicate(mesh, start_server(config.server.optimizer, shared))
        self.backbone, self.hyper, self.key = replicate(
            mesh, (backbone, Hyper.of(config), jax.random.fold_in(key, _ROUNDS))
        )
        self.plan = RoundPlan(graph, LocalPlan.of(config), mesh, lanes, config.server.optimizer)
        self._plain = replicate(mesh, Dataset(features.plain[None], task.labels))
        plain_alone = len(features.views) == 1
        self._train = self._plain if plain_alone else replicate(mesh, Dataset(np.stack(features.views), task.labels))
        self._wasted: list[float] = []

    @property
    def wasted(self) -> float:
        """Mean share of lane-steps that did no work."""
        return float(np.mean(self._wasted)) if self._wasted else 0.0

    def round(self, number: int) -> Done:
        """One round: a cohort is drawn and laid out, trains, and is averaged.

        Raises:
          InputError: prompts or figures are no longer finite.
        """
        began = time.perf_counter()
        config, plan = self.config, self.plan
        cohort = draw_cohort(config.seed, number, self.clients.num_clients, config.cohort)
        steps = plan.local.steps(self.clients.train_counts[cohort])
        layout = lay_out(cohort, steps, plan.mesh.size, plan.lanes)
        answering = draw_answering(config.seed, number, layout.ids, config.dropout)
        rows, counts = self.clients.padded(layout.ids, "train", self.clients.width("train"))
        private, members, answers = spread(
            plan.mesh,
            (self.population.gather(layout.ids), Members(layout.ids.astype(np.int32), rows, counts), answering),
        )
        self.server, private, figures = run_round(
            plan,
            self.server,
            private,
            members,
            answers,
            self._train,
            self.backbone,
            self.hyper,
            self.key,
            replicate(plan.mesh, jnp.asarray(number)),
        )
        self.population.scatter(layout.ids, private)
        self._wasted.append(layout.wasted)
        values = {name: float(value) for name, value in figures.items()}
        prompts = jax.tree.leaves((self.server.shared, private))
        if not all(np.isfinite(leaf).all() for leaf in (*prompts, *values.values())):
            raise InputError(
                f"round {number}: prompts or loss are no longer finite; lower local.learning_rate = "
                f"{config.local.learning_rate}"
            )
        spent = time.perf_counter() - began
        return Done(values, len(cohort), int(answering.sum()), int(steps.sum()), spent)

    def score(self) -> dict[str, Any]:
        return score_federation(
            self.plan.graph,
            self.plan.mesh,
            self.server.shared,
            self.population,
            self.clients,
            self._plain,
            self.labels,
            self.backbone,
        )

    def digest(self) -> str:
        """sha256 over the shared prompts and the private ones of every client drawn so far."""
        sha = hashlib.sha256()
        kept = self.population.state()
        leaves = [*jax.tree.leaves(self.server.shared), kept["ids"], *jax.tree.leaves(kept["leaves"])]
        for leaf in leaves:
            sha.update(np.ascontiguousarray(leaf).tobytes())
        return sha.hexdigest()

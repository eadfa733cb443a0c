"""One federated run, from a configuration to a folder of results; read it from top to bottom."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import PyTree

from fedrsclip_jax import compilation
from fedrsclip_jax import config as configuration
from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.partition import partition
from fedrsclip_jax.data.split import stratified_split
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import score_federation, score_zero_shot
from fedrsclip_jax.federated.aggregate import Server, start_server
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan, Members
from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort, lay_out
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import RoundPlan, choose_lanes, make_mesh, replicate, run_round, spread, traffic
from fedrsclip_jax.files import check_new, write_json, write_text
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import Private, Shared
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import Task

# Streams of the run's key.
_SHARED, _PRIVATE, _ROUNDS = range(3)


def run(config: Config, task: Task, workdir: Path, progress: Progress) -> dict[str, Any]:
    """Trains, evaluates and saves one run.

    Returns:
      What `summary.json` says.

    Raises:
      InputError: settings that do not fit the data or the backbone; nothing has been written then.
    """
    clients = divide(config, task)
    backbone = task.backbone(config.method)
    federation = Federation(config, task, backbone, clients)
    check_new(workdir)

    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "config.json", configuration.to_dict(config))
    clients.partition.save(workdir / "partition.npz")
    zero_shot = score_zero_shot(task.features.plain, task.labels, clients, backbone)

    clock = compilation.Clock()
    seconds = {"encode": task.seconds, "compile": 0.0, "train": 0.0, "evaluate": 0.0}
    lines: list[dict[str, Any]] = []
    bytes_sent = steps = 0
    with (
        Checkpoints(workdir, config.checkpoint.keep) as checkpoints,
        progress.track(f"{config.method.name}, seed {config.seed}", config.rounds, unit="rounds") as bar,
    ):
        for number in range(1, config.rounds + 1):
            with clock.measure(seconds, "train"):
                done = federation.round(number)
            steps += done.steps
            bytes_sent += done.answered * federation.traffic.bytes
            bar.advance_to(
                number,
                loss=done.figures.get("loss", 0.0),
                accuracy=done.figures.get("accuracy", 0.0),
                clients_per_second=done.clients / max(done.seconds, 1e-9),
                bytes_sent=bytes_sent,
            )
            if not federation.is_finite():
                raise InputError(
                    f"round {number}: the shared prompt is no longer finite; lower local.learning_rate = "
                    f"{config.local.learning_rate}"
                )
            last = number == config.rounds
            if last or number % config.eval.every == 0:
                with clock.measure(seconds, "evaluate"):
                    scores = federation.score()
                lines.append({"round": number, **done.figures, "bytes_sent": bytes_sent, **_brief(scores)})
                write_text(workdir / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
            if last or (config.checkpoint.every and number % config.checkpoint.every == 0):
                checkpoints.save(number, federation.server, federation.population)

    summary = {
        "method": config.method.name,
        "backbone": config.backbone,
        "dataset": config.data.source,
        "split": config.eval.split,
        "num_classes": len(task.source.class_names),
        "num_clients": clients.num_clients,
        "num_images": len(task.labels),
        "unreadable_images": int(np.sum(~task.features.readable)),
        "rounds": config.rounds,
        "seed": config.seed,
        "uplink_params_per_client_round": federation.traffic.params,
        "uplink_bytes_per_client_round": federation.traffic.bytes,
        "bytes_sent": bytes_sent,
        "zero_shot": zero_shot,
        **scores,
        "seconds": {phase: round(spent, 3) for phase, spent in seconds.items()},
        "client_steps_per_second": steps / max(seconds["train"], 1e-9),
        "wasted_lane_share": federation.wasted,
        "devices": federation.plan.mesh.size,
        "clients_per_device": federation.plan.lanes,
        "state_sha256": federation.digest(),
        "backbone_sha256": task.digest,
        "partition_sha256": clients.partition.digest(),
        "config_sha256": configuration.digest(config),
    }
    write_json(workdir / "summary.json", summary)
    return summary


def divide(config: Config, task: Task) -> Clients:
    """The images split for training and scoring, and given to clients; a function of data and seed."""
    labels, digests, names = task.labels, task.source.digests, task.source.class_names
    train, test = stratified_split(
        labels, digests, config.data.test_fraction, config.seed, task.features.readable, names
    )
    if config.eval.split == "validation":
        # Settings are chosen on a part of the training images; the test images are not looked at.
        eligible = np.zeros(len(labels), bool)
        eligible[train] = True
        train, test = stratified_split(labels, digests, config.data.test_fraction, config.seed, eligible, names)
    settings = config.partition
    owners = partition(
        settings.kind,
        labels,
        task.source.domains,
        train,
        test,
        clients=settings.clients,
        alpha=settings.alpha,
        classes_per_client=settings.classes_per_client,
        min_examples=settings.min_examples,
        seed=config.seed,
    )
    return Clients(owners)


class Done:
    """What a round reports: figures averaged over images, and how much was done."""

    def __init__(self, figures: dict[str, float], clients: int, answered: int, steps: int, seconds: float):
        self.figures = figures
        self.clients = clients
        self.answered = answered
        self.steps = steps
        self.seconds = seconds


class Federation:
    """The server, the population and the compiled round of one run; the state changes by `round` alone."""

    def __init__(self, config: Config, task: Task, backbone: Backbone, clients: Clients):
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
        # Other seeds' partitions are likely to share this width, and with it the compiled round.
        self._width = 1 << max(clients.max_train - 1, 1).bit_length()
        self._train = replicate(mesh, Dataset(np.stack(task.features.views), task.labels))
        self._plain = replicate(mesh, Dataset(task.features.plain[None], task.labels))
        self._wasted: list[float] = []

    @property
    def wasted(self) -> float:
        """Mean share of lane-steps that did no work."""
        return float(np.mean(self._wasted)) if self._wasted else 0.0

    def round(self, number: int) -> Done:
        """One round: a cohort is drawn and laid out, trains, and is averaged."""
        began = time.perf_counter()
        config, plan = self.config, self.plan
        cohort = draw_cohort(config.seed, number, self.clients.num_clients, config.cohort)
        steps = plan.local.steps(self.clients.train_counts[cohort])
        layout = lay_out(cohort, steps, plan.mesh.size, plan.lanes)
        answering = draw_answering(config.seed, number, layout.ids, config.dropout)
        rows, counts = self.clients.padded(layout.ids, "train", self._width)
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

    def is_finite(self) -> bool:
        return all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(self.server.shared))

    def digest(self) -> str:
        """sha256 over the shared prompts and the private ones of every client drawn so far."""
        sha = hashlib.sha256()
        kept = self.population.state()
        leaves = [*jax.tree.leaves(self.server.shared), kept["ids"], *jax.tree.leaves(kept["leaves"])]
        for leaf in leaves:
            sha.update(np.ascontiguousarray(leaf).tobytes())
        return sha.hexdigest()


def _brief(scores: PyTree) -> dict[str, Any]:
    """What a line of `metrics.jsonl` keeps of the scores."""
    chosen = {"global": ("accuracy", "macro_f1", "ece"), "personalised": ("mean", "std", "worst_decile")}
    return {part: {name: scores[part][name] for name in names} for part, names in chosen.items()}

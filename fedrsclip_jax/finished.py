"""A finished run, opened again from its folder."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Int32, PyTree, UInt8

from fedrsclip_jax import config as configuration
from fedrsclip_jax import formats
from fedrsclip_jax.checkpoint import BEST, FOLDER, Checkpoints, Saved
from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.config import GIVEN, Config
from fedrsclip_jax.data.clients import Clients, PartitionedClients
from fedrsclip_jax.data.sources import ImageSource, fingerprint
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.initial import initial
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.prompts import Prompts, kept, starting_from
from fedrsclip_jax.task import Task, divide, load_source, load_task

# What may be said anew of a finished run: where its data and backbone lie, and the machine.
MOVABLE = ("backbone", "data.source", "data.tfds_dir", "data.merge", "spmd.devices", "spmd.clients_per_device")


@dataclass(frozen=True)
class FinishedRun:
    """What a run's folder tells before its checkpoint is read.

    Attributes:
      workdir: the folder.
      config: of this run alone, with what was said anew.
      summary: `summary.json`.
      task: images and backbone; without images where they were not asked for and cannot be found.
      initial_prompts: that it started from, if they came from elsewhere.
    """

    workdir: Path
    config: Config
    summary: dict[str, Any]
    task: Task
    initial_prompts: Prompts


@dataclass(frozen=True)
class Restored:
    """The variables of a checkpoint.

    Attributes:
      round: after which it was written.
      graph, shared: of the method's module, and its shared variables.
      population: the private variables of all clients.
      backbone: that the method's module reads.
    """

    round: int
    graph: Any
    shared: PyTree
    population: Population
    backbone: Backbone

    def module(self, client: int) -> nnx.Module:
        """The method's module as one client has it."""
        private = jax.tree.map(lambda leaf: leaf[0], self.population.gather(np.array([client])))
        return nnx.merge(self.graph, self.shared, private)


def open_run(
    workdir: Path,
    overrides: Sequence[tuple[str, str]],
    *,
    images: bool = True,
    dtype: str | None = None,
    check: Callable[[Config], None] = lambda config: None,
) -> FinishedRun:
    """Opens a finished run.

    Args:
      workdir: its folder.
      overrides: keys that say where things lie now; see `MOVABLE`.
      images: whether they are needed; if not, the class names that the run has kept will do, whatever lies among the
        images by now.
      dtype: of the towers, instead of the run's.
      check: refuses a run by its configuration, before images and backbone are opened.

    Raises:
      InputError: the folder holds no finished run, or backbone, classes or the prompts that it has kept are not the
        ones of the run.
    """
    for name, _ in overrides:
        if name not in MOVABLE:
            raise InputError(f"--config.{name}: a finished run is what it was; only {', '.join(MOVABLE)} may differ")
    written = workdir / "config.json"
    if not written.is_file():
        raise InputError(f"--workdir: {workdir} holds no config.json; give the folder of a run of `fedrsclip train`")
    said = formats.read(written)
    if "sweep" in said:
        runs = sorted(path.parent for path in workdir.glob("runs/*/summary.json"))
        remedy = f"give one of its runs, such as --workdir={runs[0]}" if runs else "none of its runs has finished yet"
        raise InputError(f"--workdir: {workdir} holds a sweep of many runs; {remedy}")
    config = configuration.resolve(Config, said, overrides)
    config = dataclasses.replace(config, seeds=1, baselines=(), dtype=dtype or config.dtype)
    check(config)
    if not (workdir / "summary.json").is_file():
        raise InputError(f"--workdir: {workdir} holds no summary.json; the run has not finished")
    summary = formats.read(workdir / "summary.json", "backbone_sha256", "num_clients", "num_classes", "personalised")
    task = load_task(config, _source(config, summary, images))
    if task.digest != summary["backbone_sha256"]:
        raise InputError(f"backbone: {config.backbone} has other weights than the run had; give the same backbone")
    start = kept(workdir, summary.get("initial_prompts_sha256")) if config.init_from else Prompts()
    return FinishedRun(workdir, config, summary, task, start)


def read_checkpoint(workdir: Path, checkpoint: str = "last") -> Saved:
    """One of a run's checkpoints: `last`, `best` or a round; `InputError` where there is no such."""
    best = checkpoint == "best"
    with Checkpoints(workdir, folder=BEST if best else FOLDER) as checkpoints:
        if best and not checkpoints.rounds():
            raise InputError(
                "--checkpoint=best: this run marked none, as only runs with eval.split = validation do, which choose "
                "without a look at the test images; leave --checkpoint out for the last, or give a round"
            )
        return checkpoints.restore("last" if best else checkpoint)


def restore(run: FinishedRun, checkpoint: str = "last") -> Restored:
    """The variables of one of a run's checkpoints; no image is needed.

    Args:
      checkpoint: `last`, `best` or a round.

    Raises:
      InputError: there is no such checkpoint.
    """
    config = run.config
    backbone = run.task.backbone(config.method)
    graph, shared, population = initial(
        config,
        starting_from(run.initial_prompts, find_method(config.method.name)),
        backbone,
        run.task.context_start(config.method),
        run.summary["num_clients"],
    )
    saved = read_checkpoint(run.workdir, checkpoint)
    population.restore(saved.population)
    population.forget_untrained()
    shared = jax.tree.unflatten(jax.tree.structure(shared), map(jnp.asarray, saved.shared))
    return Restored(saved.round, graph, shared, population, backbone)


def clients_of(run: FinishedRun, readable: Bool[np.ndarray, " images"]) -> Clients:
    """Who owns which image of a run: found anew, as its folder keeps it.

    Owners that no seed draws, or that an older version drew otherwise from the same images, are read from the folder.

    Raises:
      InputError: the images have changed since the run.
    """
    config, kept = run.config, run.workdir / "partition.npz"
    if config.partition.kind == GIVEN:
        clients = _kept_clients(run, kept)
        if clients.digest() != run.summary.get("partition_sha256"):
            raise InputError(f"{kept} is not what the run has kept; its folder is damaged")
        if fingerprint(run.task.images) != run.summary.get("data_sha256"):
            raise InputError(f"data.source: {config.data.source} has other images than the run had; give the same ones")
        return clients
    clients = divide(config, run.task, readable)
    if clients.saved_as(kept):
        return clients
    if isinstance(clients, PartitionedClients) and fingerprint(run.task.images) == run.summary.get("data_sha256"):
        clients = _kept_clients(run, kept)
        if clients.digest() == run.summary.get("partition_sha256"):
            return clients
    raise InputError(
        f"{kept} differs from what config.json and {config.data.source} give; the images have changed since the run"
    )


def _kept_clients(run: FinishedRun, kept: Path) -> PartitionedClients:
    return PartitionedClients.load(kept, unseen=run.config.partition.held_out > 0)


class NoImages:
    """An image source of which only the class names are known."""

    def __init__(self, class_names: Sequence[str]):
        self.class_names = tuple(class_names)
        self.domain_names = ("all",)
        self.labels: Int32[np.ndarray, images] = np.zeros(0, np.int32)
        self.domains: Int32[np.ndarray, images] = np.zeros(0, np.int32)
        self.digests: list[str] = []

    def __len__(self) -> int:
        return 0

    def image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        raise IndexError(i)

    def name(self, i: int) -> str:
        raise IndexError(i)


def _source(config: Config, summary: dict[str, Any], needed: bool) -> ImageSource:
    kept = summary.get("class_names")
    if kept is not None:  # those of the whole source
        kept = [*kept, *summary.get("base_to_new", {}).get("new_classes", ())]
    try:
        source = load_source(config.data)
    except InputError:
        if needed or kept is None:
            raise
        return NoImages(kept)
    names = list(source.class_names)
    if kept is not None and names != kept and not needed:
        return NoImages(kept)
    if len(names) != summary["num_classes"] if kept is None else names != kept:
        raise InputError(
            f"data.source: {config.data.source} has {len(names)} classes, {names[0]!r} to {names[-1]!r}, which are not "
            f"those of the run; give the images of the run by --config.data.source"
        )
    return source

"""A federation on a task: the engine, given images, backbone and clients, and its scores."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import Answers, answer_pooled, score_federation, score_participants, score_zero_shot
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.engine import FEATURES_SHARE, Engine
from fedrsclip_jax.federated.finetune import FineTuning
from fedrsclip_jax.federated.initial import FINE_TUNING
from fedrsclip_jax.federated.mesh import make_mesh, memory_limit, replicate
from fedrsclip_jax.federated.window import streamed_images
from fedrsclip_jax.methods import find_method
from fedrsclip_jax.methods.base import needs_patches
from fedrsclip_jax.prompts import Prompts, starting_from
from fedrsclip_jax.task import Task

SCORING_SHARE = 0.8  # of a device's memory that the features which are scored may take


class Federation(Engine):
    """The engine of one run.

    Attributes:
      scored: clients whose models are scored, ascending; the same in every round.
    """

    def __init__(
        self,
        config: Config,
        task: Task,
        features: Features,
        clients: Clients,
        prompts: Prompts,
        beside: "Federation | None" = None,
        make: Callable[..., Any] | None = None,
    ):
        """
        Args:
          prompts: that the run starts from; see `prompts.starting_from`.
          beside: another federation on the same images and devices, whose arrays are used once more.
          make: makes the method's module, where it is not one that `method.name` finds; see `methods.base.Method`.
        """
        method = make or find_method(config.method.name)
        if needs_patches(method):
            _check_room(config, features)
        else:
            features = features.narrowed(task.clip_config.embed)
        there = beside if beside is not None and beside.config.spmd == config.spmd else None
        if there and there._plain.features.shape[-1] != features.plain.shape[-1]:
            there = None
        held: Any = there and there.data
        labels = self.labels = np.asarray(task.labels)
        self.scored = clients.scored(config.eval.clients, config.seed)
        self._features = features.plain
        streamed = _streams(config, features, clients)
        super().__init__(
            config,
            starting_from(prompts, method),
            there.backbone if there and _read(there.config) == _read(config) else task.backbone(config.method),
            task.context_start(config.method),
            clients,
            supply=lambda rows: Dataset(np.stack([view[rows] for view in features.views]), labels[rows]),
            resident=None if streamed else lambda: held or Dataset(np.stack(features.views), labels),
        )
        plain_is_there = self.data is not None and len(features.views) == 1
        if plain_is_there or there is None:
            plain = self.data if plain_is_there else replicate(self.plan.mesh, Dataset(features.plain[None], labels))
        else:
            plain = there._plain
        self._plain: Any = plain
        self._tuning = None
        if config.eval.finetune_epochs:
            local = dataclasses.replace(self.plan.local, epochs=config.eval.finetune_epochs)
            key = jax.random.fold_in(jax.random.key(config.seed), FINE_TUNING)
            self._tuning = FineTuning(local, self.hyper, replicate(self.plan.mesh, key))

    @property
    def width(self) -> int:
        """Numbers of an image's features, with those of patches where the method needs them."""
        return self._plain.features.shape[-1]

    @property
    def participants(self) -> Int[np.ndarray, " participants"] | None:
        """Clients that have taken part and are scored beside `scored`; see `Clients.participants`."""
        return self.clients.participants(self.population.took_part, self.config.eval.clients, self.config.seed)

    def score(self, complete: bool = True) -> dict[str, Any]:
        """The scores as they stand; `complete` adds every personal model on all pooled images.

        Returns:
          What `evaluate.score_federation` gives; where there are `participants`, also the spread of their models'
          accuracies on their own images, with `zero_shot` on the same.
        """
        model = (self.plan.graph, self.plan.mesh, self.server.shared, self.population, self.clients)
        how: Any = {"lanes": self.lanes, "tuning": self._tuning}
        scores = score_federation(
            *model, self.scored, self._plain, self.labels, self.backbone, complete=complete, **how
        )
        participants = self.participants
        if participants is not None and len(participants):
            own = score_participants(*model, participants, self._plain, self.backbone, **how)
            zero = score_zero_shot(self._features, self.labels, self.clients, participants, self.backbone)
            scores["participants"] = {**own, "zero_shot": zero["on_clients"]}
        return scores

    def answers(self, clients: Clients | None = None) -> Answers:
        """What the federation's model says of the pooled test images, of its clients or of others."""
        return answer_pooled(
            self.plan.graph,
            self.plan.mesh,
            self.server.shared,
            self.population,
            clients or self.clients,
            self.scored,
            self._plain,
            self.backbone,
        )


def _read(config: Config) -> tuple:
    """What a backbone depends on, of the same CLIP and classes."""
    method = config.method
    return method.context_tokens, method.class_position, method.combine


def _check_room(config: Config, features: Features) -> None:
    """Refuses features whose plain view, which lies on every device for scoring, has no room there."""
    limit, size = memory_limit(make_mesh(config.spmd.devices)), features.plain.nbytes
    if limit is not None and size > SCORING_SHARE * limit:
        raise InputError(
            f"features of {len(features.plain)} images take {size / 1e9:.1f} GB, and a device has {limit / 1e9:.1f} "
            "GB; set method.patch_grid to fewer patches, or use fewer images"
        )


def _streams(config: Config, features: Features, clients: Clients) -> bool:
    """Whether training images are sent to the devices as rounds need them, or all lie there."""
    if config.spmd.features != "auto":
        return config.spmd.features == "streamed"
    mesh = make_mesh(config.spmd.devices)
    limit, everything = memory_limit(mesh), sum(view.nbytes for view in features.views)
    if limit is None or everything <= FEATURES_SHARE * limit:
        return False
    sent = everything // len(features.plain) * streamed_images(config, clients, mesh.size)
    # The plain view is there for scoring, so that of a single view nothing is saved.
    return sent + (features.plain.nbytes if len(features.views) == 1 else 0) < everything

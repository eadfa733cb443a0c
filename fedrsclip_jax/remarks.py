"""What a person is told of their images: how the folders were understood, that names may be no words to CLIP, and that
clients may have nothing to be scored on."""

from typing import Any

import numpy as np
from jaxtyping import Int

from fedrsclip_jax.config import Config
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.layout import SIDES
from fedrsclip_jax.data.sources import ImageSource, of_folders, remarks_of
from fedrsclip_jax.data.split import given_sides
from fedrsclip_jax.task import Task, split

# Of the way from chance to all right: below, zero-shot may be said to have found next to nothing.
_NEAR_CHANCE = 0.15


def of_images(config: Config, source: ImageSource) -> list[str]:
    """Layout, what is left out, and the split that the folders bring.

    Raises:
      InputError: that split cannot be used.
    """
    said = remarks_of(source)
    if (sides := given_sides(config.data.split, source)) is None:
        return said
    train, test = split(config, source)
    counts = ", ".join(f"{np.sum(sides == side):,} {name}" for side, name in enumerate(SIDES))
    said.append(f"split by the folders ({counts}): {len(train):,} images train, {len(test):,} are scored")
    digests = source.digests
    if both := len({digests[i] for i in train} & {digests[i] for i in test}):
        stand, them = ("image stands", "it") if both == 1 else ("images stand", "them")
        said.append(f"warning: {both} {stand} on both sides of that split; data.split=drawn keeps {them} on one")
    return said


def of_task(config: Config, task: Task) -> list[str]:
    """What is said before images are encoded: of these, see `of_images`, and what zero-shot CLIP reads."""
    return [*of_images(config, task.source), task.reads]


def of_clients(clients: Clients, ids: Int[np.ndarray, " scored"], seed: int) -> str | None:
    """How many clients cannot be scored, as they have no test image; None where all can.

    Args:
      ids: those that are to be scored; see `Clients.scored`.
      seed: of the partition, for people.
    """
    without = int(np.sum(clients.counts(ids, "test") == 0))
    if not without:
        return None
    have, are = ("has", "is") if without == 1 else ("have", "are")
    return f"seed {seed}: {without:,} of {len(ids):,} clients {have} no test image and {are} not scored"


def of_zero_shot(config: Config, scores: dict[str, Any]) -> str | None:
    """What to look at where zero-shot is near chance; None where it is not.

    Args:
      scores: see `evaluate.score_zero_shot`.
    """
    classes, accuracy = len(scores["per_class"]), scores["accuracy"]
    chance = 1 / max(classes, 1)
    if accuracy >= chance + _NEAR_CHANCE * (1 - chance):
        return None
    where = "classnames.txt in the folder (a line a class: folder = words)" if of_folders(config.data.source) else ""
    remedy = f"; where the names are not English, write them into {where}" if where else ""
    return (
        f"zero-shot is right on {100 * accuracy:.1f} % of images, near the {100 * chance:.1f} % of chance: look at the "
        f"sentences that CLIP reads{remedy}"
    )

"""What a run can say of one of its models: accuracies, calibration, and the classes that a client trained on."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.evaluate import Answers, score_pooled, score_zero_shot
from fedrsclip_jax.evidence import Evidence
from fedrsclip_jax.export.chosen import Model
from fedrsclip_jax.finished import FinishedRun, clients_of
from fedrsclip_jax.progress import Progress
from fedrsclip_jax.task import encode_images, images_to_encode

MOST_IMAGES = 20_000  # of a data set; more are not read again for a card, which is worth seconds


@dataclass(frozen=True)
class Figures:
    """Of one model; None is what the run does not know. Fractions are from 0 to 1.

    Attributes:
      split: which images the figures are of, `test` or `validation`.
      images: how many of these all clients have together.
      accuracy, macro_f1, ece: on all of them.
      zero_shot: accuracy of CLIP with a hand-written template on the same images.
      own_images, own_accuracy: of a client, on its own images of the split.
      trained_on: of a client, the classes of its training images.
    """

    split: str
    images: int | None = None
    accuracy: float | None = None
    macro_f1: float | None = None
    ece: float | None = None
    zero_shot: float | None = None
    own_images: int | None = None
    own_accuracy: float | None = None
    trained_on: tuple[str, ...] | None = None


class Scorer:
    """The figures of a finished run, by model: found out from cached features, or else what the run has written."""

    def __init__(self, run: FinishedRun):
        self._run = run

    def of(self, model: Model) -> Figures:
        """The figures of a model; its own logits are asked where the features of the images are in the cache."""
        kept = remembered(self._run, model.round, model.client)
        if self._images is None:
            return kept
        features, clients = self._images
        labels, names = self._run.task.labels, self._run.task.source.class_names
        answers = Answers.of(model.logits(features.plain[clients.pooled]))
        scores = score_pooled(answers, labels[clients.pooled], len(names))
        own = trained_on = None
        if model.client is not None:
            own = _rows(clients, model.client, "test")
            trained_on = tuple(names[c] for c in np.unique(labels[_rows(clients, model.client, "train")]))
        return Figures(
            split=kept.split,
            images=len(clients.pooled),
            accuracy=scores["accuracy"],
            macro_f1=scores["macro_f1"],
            ece=scores["ece"],
            zero_shot=self._zero_shot,
            own_images=None if own is None else len(own),
            own_accuracy=None
            if own is None or not len(own)
            else float(np.mean(model.logits(features.plain[own]).argmax(axis=1) == labels[own])),
            trained_on=trained_on,
        )

    @functools.cached_property
    def _images(self) -> tuple[Features, Clients] | None:
        """Features and their owners, where all are as they were in the run."""
        task, config = self._run.task, self._run.config
        if not 0 < len(task.labels) <= MOST_IMAGES:
            return None
        try:
            if images_to_encode(config, task):
                return None
            features = encode_images(config, task, Progress(quiet=True))
            clients = clients_of(self._run, features.readable)
        except (InputError, OSError):  # images or partition are others now, or gone: the run's own figures will do
            return None
        return (features.narrowed(task.clip_config.embed), clients) if len(clients.pooled) else None

    @functools.cached_property
    def _zero_shot(self) -> float:
        assert self._images is not None
        (features, clients), task = self._images, self._run.task
        backbone = task.backbone(self._run.config.method)
        return score_zero_shot(features.plain, task.labels, clients, np.zeros(1, np.int64), backbone)["accuracy"]


def remembered(run: FinishedRun, number: int, client: int | None) -> Figures:
    """The figures that a run's folder holds of a model after a round; accuracies are of its last round alone."""
    summary: dict[str, Any] = run.summary
    evidence = Evidence.load(run.workdir)
    last = number == summary.get("rounds")
    figures: dict[str, Any] = {
        "split": summary.get("split", "test"),
        "images": None if evidence is None else len(evidence.truth),
        "zero_shot": summary.get("zero_shot", {}).get("accuracy"),
    }
    if client is None:
        scores: dict[str, Any] = (summary.get("global") or {}) if last else {}
        figures |= {name: scores.get(name) for name in ("accuracy", "macro_f1", "ece")}
        return Figures(**figures)
    if last and not run.config.eval.finetune_epochs:  # else the models scored were fine-tuned first
        figures["accuracy"] = _of_client(summary.get("personal_on_pooled"), client, summary["num_clients"])
        figures["own_accuracy"] = _of_client(summary.get("personalised"), client, summary["num_clients"])
    train, test = _images_by_class(run, evidence, client)
    if train is not None:
        figures["trained_on"] = tuple(run.task.source.class_names[c] for c in np.flatnonzero(train))
    return Figures(**figures, own_images=test)


def few_classes(figures: Figures, classes: int) -> bool:
    """Whether a client has trained on fewer than half of the classes."""
    return figures.trained_on is not None and 2 * len(figures.trained_on) < classes


def warning(model: Model, figures: Figures, advice: str) -> str | None:
    """What whoever asks for a client's model should know first; None if there is nothing.

    Args:
      advice: how to ask for the federation's model instead.
    """
    names, summary = model.run.task.source.class_names, model.run.summary
    if model.client is None:
        return None
    if not model.drawn:
        return f"client {model.client} never took part; its private prompt is its initial draw, untrained"
    if figures.trained_on is None or not few_classes(figures, len(names)):
        return None
    shown = ", ".join(figures.trained_on[:5]) + (", ..." if len(figures.trained_on) > 5 else "")
    said = f"client {model.client} trained on {len(figures.trained_on)} of {len(names)} classes ({shown})"
    if figures.accuracy is not None:
        said += f"; it is right on {_percent(figures.accuracy)} of all {figures.split} images"
    if summary.get("uplink_params_per_client_round", 1):  # else there is no model of the federation
        said += f"; {advice}"
        federation = remembered(model.run, model.round, None).accuracy
        said += "" if federation is None else f", which is right on {_percent(federation)}"
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _of_client(scores: dict[str, Any] | None, client: int, clients: int) -> float | None:
    """A client's accuracy, where it was scored."""
    if not scores:
        return None
    each = scores["per_client"]
    ids = scores.get("clients", range(clients) if len(each) == clients else ())
    return dict(zip(ids, each, strict=False)).get(client)


def _images_by_class(run: FinishedRun, evidence: Evidence | None, client: int) -> tuple[np.ndarray | None, int | None]:
    """A client's training images by class, and how many images of the split it has."""
    if evidence is not None and client in evidence.owners:
        (row,) = np.flatnonzero(evidence.owners == client)
        return evidence.train[row], int(evidence.test[row].sum())
    labels = run.task.labels
    try:
        partition = Partition.load(run.workdir / "partition.npz")
    except InputError:  # clients of other kinds, or older
        return None, None
    if len(labels) != run.summary.get("num_images") or not 0 <= client < partition.num_clients:
        return None, None
    train, test = partition.between(client, client + 1).counts(labels, len(run.task.source.class_names))
    return train[0], int(test[0].sum())


def _rows(clients: Clients, client: int, split: str) -> np.ndarray:
    rows, counts = clients.padded(np.array([client]), split)
    return rows[0, : counts[0]]

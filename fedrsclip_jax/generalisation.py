"""Scores beyond the federation: of clients that never trained, and of classes that it never saw."""

from typing import Any

import numpy as np

from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.evaluate import answer_pooled, score_by_client, score_personal, score_zero_shot
from fedrsclip_jax.federated.client import Dataset
from fedrsclip_jax.federated.mesh import replicate
from fedrsclip_jax.federation import Federation
from fedrsclip_jax.task import Task, split


def score_beyond(federation: Federation, task: Task, features: Features, scores: dict[str, Any]) -> dict[str, Any]:
    """`unseen` and `base_to_new` of a federation as it stands, where asked for; of several processes, all have to.

    Args:
      scores: of the federation's own clients and classes; see `evaluate.score_federation`.
    """
    features = features.narrowed(federation.width)
    beyond = {}
    if federation.clients.unseen is not None:
        beyond["unseen"] = score_unseen(federation, features)
    if task.new is not None:
        beyond["base_to_new"] = score_base_to_new(federation, task, features, scores)
    return beyond


def score_unseen(federation: Federation, features: Features) -> dict[str, Any]:
    """Accuracies of the federation's model, and of zero-shot CLIP, on the images of each client that never trained.

    Returns:
      `global` and `zero_shot` as of `evaluate.score_clients`; `global` is None where a method shares nothing.
    """
    unseen, labels = federation.clients.unseen, federation.labels
    assert unseen is not None
    everyone = np.arange(unseen.num_clients)
    zero_shot = score_zero_shot(features.plain, labels, unseen, everyone, federation.backbone)
    shares = federation.traffic.params > 0
    return {
        "global": score_by_client(federation.answers(unseen), labels, unseen) if shares else None,
        "zero_shot": zero_shot["on_clients"],
    }


def score_base_to_new(federation: Federation, task: Task, features: Features, scores: dict[str, Any]) -> dict[str, Any]:
    """Accuracy on the classes that were trained on, on others, each half by itself, and their harmonic mean.

    The protocol is that of CoCoOp (Zhou et al. 2022, arXiv:2203.05557): the trained prompts are put in front of the
    names of the other classes, and images of these are told apart among them alone. Test images of either half come
    from the same rule (`task.split`).

    Returns:
      `base`, `new` and `harmonic_mean` of the federation's model, each None where a method shares nothing; the same
      of `zero_shot`, and of `personal`, where base and new are means over the scored clients' models on all test
      images, base None unless `scores` are complete; `base_classes`, `new_classes`.
    """
    new, config, plan = task.of_new_classes(), federation.config, federation.plan
    found = features.new
    assert found is not None
    _, test = split(config, new.source, found.readable)
    nobody = np.zeros(0, np.int32)
    tested = PartitionedClients(Partition(nobody, np.zeros(2, np.int64), test, np.array([0, len(test)])))
    backbone = replicate(plan.mesh, new.backbone(config.method))
    data = replicate(plan.mesh, Dataset(found.plain[None], np.asarray(new.labels)))
    template = [
        score_zero_shot(*of)["accuracy"]
        for of in (
            (features.plain, federation.labels, federation.clients, federation.scored, federation.backbone),
            (found.plain, new.labels, tested, np.arange(1), backbone),
        )
    ]
    model = (plan.graph, plan.mesh, federation.server.shared, federation.population)
    accuracy = None
    if federation.traffic.params:
        answers = answer_pooled(*model, tested, federation.scored, data, backbone)
        accuracy = float(np.mean(answers.guess == new.labels[test]))
    own = score_personal(*model, federation.scored, test, data, backbone, lanes=federation.lanes)
    return {
        **_both(None if accuracy is None else scores["global"]["accuracy"], accuracy),
        "personal": _both(scores.get("personal_on_pooled", {}).get("mean"), float(np.mean(own))),
        "zero_shot": _both(*template),
        "base_classes": list(task.source.class_names),
        "new_classes": list(new.source.class_names),
    }


def harmonic_mean(one: float, other: float) -> float:
    """2ab / (a + b); 0 where either is."""
    return 2 * one * other / (one + other) if one and other else 0.0


def _both(base: float | None, new: float | None) -> dict[str, float | None]:
    mean = None if base is None or new is None else harmonic_mean(base, new)
    return {"base": base, "new": new, "harmonic_mean": mean}

"""Scores: the federation's model on the pooled test images, each client's model on its own."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.federated.client import Dataset, Members
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import SAME, SPLIT

CALIBRATION_BINS = 15


def score_pooled(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> dict[str, Any]:
    """Accuracy, macro-F1, accuracy per class and expected calibration error of one model on one set of images."""
    classes = logits.shape[1]
    guess = logits.argmax(axis=1)
    confusion = np.zeros((classes, classes), np.int64)
    np.add.at(confusion, (labels, guess), 1)
    hits, truth, guessed = np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)
    present = truth > 0
    f1 = 2 * hits / np.maximum(truth + guessed, 1)
    return {
        "accuracy": float(np.mean(guess == labels)),
        "macro_f1": float(np.mean(f1[present])),
        "ece": calibration_error(logits, labels),
        "per_class": [float(h / t) if t else None for h, t in zip(hits, truth, strict=True)],
    }


def calibration_error(logits: Float[np.ndarray, "images classes"], labels: Int[np.ndarray, " images"]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599) over 15 equal bins of confidence."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    confidence = shifted.max(axis=1) / shifted.sum(axis=1)
    right = logits.argmax(axis=1) == labels
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.zeros(CALIBRATION_BINS)
    np.add.at(gap, bins, right - confidence)
    return float(np.abs(gap).sum() / len(labels))


def score_clients(correct: Int[np.ndarray, " clients"], counts: Int[np.ndarray, " clients"]) -> dict[str, Any]:
    """Spread of the clients' accuracies.

    Clients without a test image have no accuracy: they are counted in `without_test` and stand as None in
    `per_client`. `worst_decile` is the mean over the worst tenth of the clients, at least one.
    """
    tested = counts > 0
    accuracy = correct[tested] / counts[tested]
    worst = np.sort(accuracy)[: max(1, len(accuracy) // 10)]
    per_client = iter(accuracy)
    return {
        "mean": float(accuracy.mean()),
        "weighted_mean": float(correct.sum() / counts.sum()),
        "std": float(accuracy.std()),
        "worst_decile": float(worst.mean()),
        "per_client": [float(next(per_client)) if has else None for has in tested],
        "without_test": int(np.sum(~tested)),
    }


def score_federation(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    clients: Clients,
    data: Dataset,
    labels: Int[np.ndarray, " images"],
    backbone: Backbone,
) -> dict[str, Any]:
    """The scores of a federation as it stands.

    Args:
      data: plain features of all images; `labels` are theirs on the host.

    Returns:
      `global` (P_s alone, pooled test images), `personalised` (P_s with P_k on client k's images, over all
      clients), and the other two of the 2 x 2: `global_on_clients` and `personal_on_pooled`.
    """
    ids = np.arange(clients.num_clients)
    pooled = clients.partition.test_order
    anyone = jax.tree.map(lambda leaf: leaf[0], population.gather(ids[:1]))
    logits = np.asarray(_global_logits(graph, shared, anyone, data.features[0][pooled], backbone))
    right = logits.argmax(axis=1) == labels[pooled]
    global_correct = _by_client(right, clients)

    slots = np.full(-(-len(ids) // mesh.size) * mesh.size, -1)
    slots[: len(ids)] = ids
    rows, counts = clients.padded(slots, "test", clients.width("test"))
    own, on_pooled = _personal_correct(
        graph,
        mesh,
        shared,
        population.gather(slots),
        Members(jnp.asarray(slots), jnp.asarray(rows), jnp.asarray(counts)),
        jnp.asarray(pooled),
        data,
        backbone,
    )
    own, on_pooled = np.asarray(own)[: len(ids)], np.asarray(on_pooled)[: len(ids)]
    return {
        "global": score_pooled(logits, labels[pooled]),
        "personalised": score_clients(own, clients.test_counts),
        "global_on_clients": score_clients(global_correct, clients.test_counts),
        "personal_on_pooled": score_clients(on_pooled, np.full(len(ids), len(pooled))),
    }


def score_zero_shot(
    features: Float[np.ndarray, "images embed"],
    labels: Int[np.ndarray, " images"],
    clients: Clients,
    backbone: Backbone,
) -> dict[str, Any]:
    """Hand-written template: pooled scores, and `on_clients` over the same images client by client."""
    pooled = clients.partition.test_order
    logits = float(backbone.scale) * np.asarray(features[pooled]) @ np.asarray(backbone.zero_shot).T
    right = logits.argmax(axis=1) == labels[pooled]
    correct = _by_client(right, clients)
    return {**score_pooled(logits, labels[pooled]), "on_clients": score_clients(correct, clients.test_counts)}


def _by_client(right: Bool[np.ndarray, " images"], clients: Clients) -> Int[np.ndarray, " clients"]:
    """Right answers on the pooled test images, counted by owner."""
    owner = np.repeat(np.arange(clients.num_clients), clients.test_counts)
    return np.bincount(owner[right], minlength=clients.num_clients)


@partial(jax.jit, static_argnums=0)
def _global_logits(graph, shared, private, features, backbone: Backbone) -> Float[Array, "images classes"]:
    return nnx.merge(graph, shared, private).global_logits(features, backbone)


@partial(jax.jit, static_argnums=(0, 1))
def _personal_correct(graph, mesh, shared, private, members: Members, pooled, data: Dataset, backbone: Backbone):
    """Right answers of each client's model on its own test images and on the pooled ones."""

    def on_device(shared, private, members, pooled, data, backbone):
        def client(arguments):
            own_private, member = arguments
            module = nnx.merge(graph, shared, own_private)

            def correct(rows: Int[Array, " rows"], mask: Bool[Array, " rows"] | bool):
                guess = jnp.argmax(module.personal_logits(data.features[0][rows], backbone), axis=1)
                return jnp.sum((guess == data.labels[rows]) & mask)

            real = jnp.arange(member.rows.shape[0]) < member.counts
            return correct(member.rows, real), correct(pooled, True)

        return jax.lax.map(client, (private, members))

    return jax.shard_map(
        on_device, mesh=mesh, in_specs=(SAME, SPLIT, SPLIT, SAME, SAME, SAME), out_specs=(SPLIT, SPLIT)
    )(shared, private, members, pooled, data, backbone)

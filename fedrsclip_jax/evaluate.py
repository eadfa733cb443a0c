"""Scores: the federation's model on the pooled test images, each client's model on its own."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Bool, Float, Int, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.clip.precision import in_full
from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.federated.client import Dataset, Members
from fedrsclip_jax.federated.finetune import FineTuning, fine_tune
from fedrsclip_jax.federated.mesh import SAME, SPLIT, replicate, spread
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import traffic

CALIBRATION_BINS = 15
_CLIENTS, _IMAGES = 1024, 16_384  # scored at a time, so that memory grows with neither
_NUMBERS = 2**26  # of features read at a time


class Answers(NamedTuple):
    """What a model says of images.

    Attributes:
      guess: the likeliest class.
      confidence: its probability.
    """

    guess: Int[np.ndarray, " images"]
    confidence: Float[np.ndarray, " images"]

    @classmethod
    def of(cls, logits: Float[np.ndarray, "images classes"]) -> "Answers":
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return cls(logits.argmax(axis=1), shifted.max(axis=1) / shifted.sum(axis=1))


class Models(NamedTuple):
    """Variables of some clients' models.

    Attributes:
      shared: replicated; None where each client has its own.
      own: private variables, or (shared, private) ones, leading axis of clients, split over devices.
    """

    shared: PyTree | None
    own: PyTree


def score_pooled(answers: Answers, labels: Int[np.ndarray, " images"], classes: int) -> dict[str, Any]:
    """Accuracy, macro-F1, accuracy per class and expected calibration error of one model on one set of images.

    Macro-F1 is the mean over the classes that have images in the set, `macro_f1_classes` of them; a guess of any other
    class counts as a miss of its own.
    """
    right = answers.guess == labels
    hits = np.bincount(labels[right], minlength=classes)
    truth, guessed = np.bincount(labels, minlength=classes), np.bincount(answers.guess, minlength=classes)
    present = truth > 0
    f1 = 2 * hits / np.maximum(truth + guessed, 1)
    return {
        "accuracy": float(np.mean(right)),
        "macro_f1": float(np.mean(f1[present])),
        "macro_f1_classes": int(present.sum()),
        "ece": calibration_error(answers.confidence, right),
        "per_class": [float(h / t) if t else None for h, t in zip(hits, truth, strict=True)],
    }


def calibration_error(confidence: Float[np.ndarray, " images"], right: Bool[np.ndarray, " images"]) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv:1706.04599) over 15 equal bins of confidence."""
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    gap = np.zeros(CALIBRATION_BINS)
    np.add.at(gap, bins, right - confidence)
    return float(np.abs(gap).sum() / len(right))


def score_clients(
    correct: Int[np.ndarray, " clients"],
    counts: Int[np.ndarray, " clients"],
    ids: Int[np.ndarray, " clients"] | None = None,
) -> dict[str, Any]:
    """Spread of the clients' accuracies.

    Clients without a test image have no accuracy: they are counted in `without_test` and stand as None in
    `per_client`. `worst_decile` is the mean over the worst tenth of the clients, at least one.

    Args:
      ids: who they are, where that is not everyone; then given as `clients`, in the order of `per_client`.
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
        "best": float(accuracy.max()),
        "per_client": [float(next(per_client)) if has else None for has in tested],
        "without_test": int(np.sum(~tested)),
        **({} if ids is None else {"clients": ids.tolist()}),
    }


def score_federation(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    clients: Clients,
    ids: Int[np.ndarray, " scored"],
    data: Dataset,
    labels: Int[np.ndarray, " images"],
    backbone: Backbone,
    *,
    lanes: int = 1,
    complete: bool = True,
    tuning: FineTuning | None = None,
) -> dict[str, Any]:
    """The scores of a federation as it stands.

    Args:
      ids: clients that are scored, ascending; see `Clients.scored`.
      data: plain features of all images; `labels` are theirs on the host.
      lanes: clients scored at a time on a device.
      complete: also every personal model on all pooled images, whose cost is their product.
      tuning: how each client fine-tunes its personal model first; None is not at all.

    Returns:
      `global` (P_s alone, pooled test images), `personalised` (P_s with P_k on client k's images, both fine-tuned by
      the client where it is so), and the other two of the 2 x 2: `global_on_clients` and, if complete,
      `personal_on_pooled`. `scored` says of which clients: how many of how many, and the share of them that has taken
      part so far; the private variables of the others are their initial draw.
    """
    model = (graph, mesh, shared, population, clients, ids, data, backbone)
    answers = answer_pooled(*model)
    own, everywhere = _right_of_personal(*model, lanes, tuning, complete)
    counts = clients.counts(ids, "test")
    names = ids if len(ids) < clients.num_clients else None
    scores = {
        "global": score_pooled(answers, labels[clients.pooled], backbone.zero_shot.shape[0]),
        "personalised": score_clients(own, counts, names),
        "global_on_clients": score_clients(_right_by_client(answers, labels, clients, ids), counts, names),
        "scored": {
            "clients": len(ids),
            "of": clients.num_clients,
            "took_part": float(np.mean(population.has(ids))),
        },
    }
    if everywhere is not None:
        total = np.full(len(ids), len(clients.pooled))
        scores["personal_on_pooled"] = score_clients(everywhere, total, names)
    return scores


def score_participants(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    clients: Clients,
    ids: Int[np.ndarray, " participants"],
    data: Dataset,
    backbone: Backbone,
    *,
    lanes: int = 1,
    tuning: FineTuning | None = None,
) -> dict[str, Any]:
    """Spread of the accuracies of some clients' models on their own images; arguments as of `score_federation`."""
    own, _ = _right_of_personal(graph, mesh, shared, population, clients, ids, data, backbone, lanes, tuning, False)
    return score_clients(own, clients.counts(ids, "test"), ids)


def _right_of_personal(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    clients: Clients,
    ids: Int[np.ndarray, " scored"],
    data: Dataset,
    backbone: Backbone,
    lanes: int,
    tuning: FineTuning | None,
    complete: bool,
) -> tuple[Int[np.ndarray, " scored"], Int[np.ndarray, " scored"] | None]:
    """Right answers of each client's model on its own test images and, if `complete`, on the pooled ones."""
    lanes = min(lanes, -(-len(ids) // mesh.size))
    pooled = replicate(mesh, clients.pooled)
    own, everywhere = [], []
    most = _CLIENTS if tuning is None else min(_CLIENTS, _NUMBERS // max(traffic(shared).params, 1))
    for block in _in_blocks(ids, max(most, 1), mesh.size * lanes):
        members, private = _members(clients, block, "test"), population.gather(block)
        members, private = spread(mesh, (members, private))
        if tuning is None:
            models = Models(shared, private)
        else:
            training = spread(mesh, _members(clients, block, "train"))
            tuned = fine_tune(tuning, graph, mesh, lanes, shared, private, training, data, backbone)
            models = Models(None, tuned)
        own.append(np.asarray(_right_on_own(graph, mesh, lanes, models, members, data, backbone)))
        if complete:
            right = _right_on_pooled(graph, mesh, lanes, models, members, pooled, data, backbone)
            everywhere.append(np.asarray(right))
    return np.concatenate(own)[: len(ids)], np.concatenate(everywhere)[: len(ids)] if complete else None


def answer_pooled(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    clients: Clients,
    ids: Int[np.ndarray, " scored"],
    data: Dataset,
    backbone: Backbone,
) -> Answers:
    """What the federation's model says of the pooled test images; arguments as of `score_federation`."""
    anyone = replicate(mesh, jax.tree.map(lambda leaf: leaf[0], population.gather(ids[:1])))
    return _answers(
        lambda rows: _global_logits(graph, shared, anyone, replicate(mesh, rows), data, backbone),
        clients.pooled,
        data.features.shape[-1],
    )


def score_zero_shot(
    features: Float[np.ndarray, "images features"],
    labels: Int[np.ndarray, " images"],
    clients: Clients,
    ids: Int[np.ndarray, " scored"],
    backbone: Backbone,
) -> dict[str, Any]:
    """Hand-written template: pooled scores, and `on_clients` over the same images client by client."""
    scale, text = float(backbone.scale), np.asarray(backbone.zero_shot)
    whole = features[:, : text.shape[1]]
    answers = _answers(lambda rows: scale * np.asarray(whole[rows]) @ text.T, clients.pooled)
    correct = _right_by_client(answers, labels, clients, ids)
    names = ids if len(ids) < clients.num_clients else None
    return {
        **score_pooled(answers, labels[clients.pooled], len(text)),
        "on_clients": score_clients(correct, clients.counts(ids, "test"), names),
    }


def score_by_client(answers: Answers, labels: Int[np.ndarray, " images"], clients: Clients) -> dict[str, Any]:
    """One model's accuracies on the test images of each client, given its answers on the pooled ones."""
    ids = np.arange(clients.num_clients)
    return score_clients(_right_by_client(answers, labels, clients, ids), clients.counts(ids, "test"))


def score_personal(
    graph: Any,
    mesh: Mesh,
    shared: PyTree,
    population: Population,
    ids: Int[np.ndarray, " scored"],
    images: Int[np.ndarray, " images"],
    data: Dataset,
    backbone: Backbone,
    *,
    lanes: int = 1,
) -> Float[np.ndarray, " scored"]:
    """Accuracy of each client's model, not fine-tuned, on all of some images; arguments as of `score_federation`."""
    lanes = min(lanes, -(-len(ids) // mesh.size))
    pooled, right = replicate(mesh, images.astype(np.int32)), []
    for block in _in_blocks(ids, _CLIENTS, mesh.size * lanes):
        nothing = np.zeros((len(block), 1), np.int32)
        members = Members(block.astype(np.int32), nothing, nothing[:, 0])
        private, members = spread(mesh, (population.gather(block), members))
        models = Models(shared, private)
        right.append(np.asarray(_right_on_pooled(graph, mesh, lanes, models, members, pooled, data, backbone)))
    return np.concatenate(right)[: len(ids)] / len(images)


def _answers(logits: Callable[[np.ndarray], Any], pooled: Int[np.ndarray, " images"], width: int = 1) -> Answers:
    """The answers of one model on images, of which only a block has logits at a time; `width` numbers an image."""
    most = min(_IMAGES, max(_NUMBERS // width, 1))
    blocks = [Answers.of(np.asarray(logits(rows))) for rows in _in_blocks(pooled, most, filler=int(pooled[0]))]
    guess, confidence = (np.concatenate(parts)[: len(pooled)] for parts in zip(*blocks, strict=True))
    return Answers(guess, confidence)


def _in_blocks(values: np.ndarray, most: int, multiple: int = 1, filler: int = -1) -> Iterator[np.ndarray]:
    """Pieces of one length, as few as need be, of which the last is filled up to a multiple of something."""
    pieces = -(-len(values) // most)
    size = -(-len(values) // (pieces * multiple)) * multiple
    for start in range(0, len(values), size):
        piece = np.full(size, filler, values.dtype)
        part = values[start : start + size]
        piece[: len(part)] = part
        yield piece


def _members(clients: Clients, block: Int[np.ndarray, " block"], split: str) -> Members:
    return Members(block.astype(np.int32), *clients.padded(block, split, clients.width(split)))


def _right_by_client(
    answers: Answers, labels: Int[np.ndarray, " images"], clients: Clients, ids: Int[np.ndarray, " scored"]
) -> Int[np.ndarray, " scored"]:
    """Right answers on the test images of each client, given the answers on the pooled ones."""
    right = np.zeros(len(labels), bool)
    right[clients.pooled] = answers.guess == labels[clients.pooled]
    correct = []
    for block in _in_blocks(ids, _CLIENTS):
        rows, counts = clients.padded(block, "test")
        correct.append(np.sum(right[rows] & (np.arange(rows.shape[1]) < counts[:, None]), axis=1))
    return np.concatenate(correct)[: len(ids)]


@partial(jax.jit, static_argnums=0)
def _global_logits(graph, shared, private, rows, data: Dataset, backbone: Backbone) -> Float[Array, "images classes"]:
    with in_full():
        return nnx.merge(graph, shared, private).global_logits(data.features[0][rows], backbone)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _right_on_own(graph, mesh, lanes, models: Models, members: Members, data: Dataset, backbone: Backbone):
    """Right answers of each client's model on its own test images."""

    def client(module, member, _, data, backbone):
        real = jnp.arange(member.rows.shape[0]) < member.counts
        return jnp.sum(_right(module, member.rows, data, backbone) & real)

    return _by_client(client, graph, mesh, lanes, models, members, (), data, backbone)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _right_on_pooled(graph, mesh, lanes, models: Models, members: Members, pooled, data: Dataset, backbone: Backbone):
    """Right answers of each client's model on all pooled test images."""

    def client(module, _, pooled, data, backbone):
        return jnp.sum(_right(module, pooled, data, backbone))

    return _by_client(client, graph, mesh, lanes, models, members, pooled, data, backbone)


def _right(module, rows, data: Dataset, backbone: Backbone) -> Bool[Array, " rows"]:
    def right(rows):
        with in_full():
            logits = module.personal_logits(data.features[0][rows], backbone)
        return jnp.argmax(logits, axis=1) == data.labels[rows]

    most = max(_NUMBERS // data.features.shape[-1], 1)
    if len(rows) <= most:
        return right(rows)
    return jax.lax.map(lambda row: right(row[None])[0], rows, batch_size=most)


def _by_client(client, graph, mesh, lanes, models: Models, members, common, data, backbone):
    """Maps `client(module, member, common, data, backbone)` over clients, which lie divided over the devices."""

    def on_device(models, members, common, data, backbone):
        def one(arguments):
            own, member = arguments
            states = own if models.shared is None else (models.shared, own)
            return client(nnx.merge(graph, *states), member, common, data, backbone)

        return jax.lax.map(one, (models.own, members), batch_size=lanes if lanes > 1 else None)

    specs: Any = (Models(SAME, SPLIT), SPLIT, SAME, SAME, SAME)
    right = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=SPLIT)(
        models, members, common, data, backbone
    )
    # On all devices, so that each of several processes can read it.
    return jax.lax.with_sharding_constraint(right, NamedSharding(mesh, SAME))

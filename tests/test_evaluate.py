"""Scores worked out by hand, and the federation's scores against a plain loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax import evaluate
from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.evaluate import (
    Answers,
    calibration_error,
    score_clients,
    score_federation,
    score_pooled,
    score_zero_shot,
)
from fedrsclip_jax.federated.mesh import make_mesh, replicate
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Private, Shared
from tests import toy


def test_pooled_scores():
    #       truth 0: hit, hit, taken for 1; truth 1: hit; truth 2: never shown
    guess = np.asarray([0, 0, 1, 1])
    labels = np.asarray([0, 0, 0, 1])
    scores = score_pooled(Answers.of(np.eye(3, dtype=np.float32)[guess] * 10), labels, 3)
    assert scores["accuracy"] == 0.75
    assert scores["per_class"] == [pytest.approx(2 / 3), 1.0, None]
    # F1: class 0 precision 1, recall 2/3 -> 0.8; class 1 precision 1/2, recall 1 -> 2/3; class 2 does not count.
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)
    assert scores["macro_f1_classes"] == 2


def test_macro_f1_is_a_mean_over_the_classes_that_have_images():
    """A guess of a class without images is a miss of the true one, and no class of its own with an F1 of 0."""
    guess, labels = np.asarray([0, 2, 1, 3]), np.asarray([0, 0, 1, 1])
    for classes in (4, 9):
        scores = score_pooled(Answers.of(np.eye(classes, dtype=np.float32)[guess] * 10), labels, classes)
        assert scores["macro_f1_classes"] == 2
        assert scores["macro_f1"] == pytest.approx(2 / 3)  # of either class: precision 1, recall 1/2
    full = score_pooled(Answers.of(np.eye(4, dtype=np.float32) * 10), np.arange(4), 4)
    assert (full["macro_f1"], full["macro_f1_classes"]) == (1.0, 4)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    def gap(logits, labels):
        answers = Answers.of(np.asarray(logits))
        return calibration_error(answers.confidence, answers.guess == np.asarray(labels))

    sure = [[100.0, 0.0]] * 4
    assert gap(sure, [0, 0, 0, 0]) == pytest.approx(0, abs=1e-6)
    assert gap(sure, [0, 0, 1, 1]) == pytest.approx(0.5, abs=1e-6)
    # Confidence 0.8 and 0.6 fall into different bins: gaps 0.2 and 0.6 over two images.
    assert gap(np.log([[0.8, 0.2], [0.6, 0.4]]), [0, 1]) == pytest.approx((0.2 + 0.6) / 2, abs=1e-6)


def test_clients_scores_leave_out_who_has_no_test_image():
    scores = score_clients(np.asarray([5, 0, 1, 0]), np.asarray([10, 0, 1, 4]))
    assert scores["per_client"] == [0.5, None, 1.0, 0.0]
    assert scores["mean"] == pytest.approx(0.5)
    assert scores["weighted_mean"] == pytest.approx(6 / 15)
    assert scores["std"] == pytest.approx(np.std([0.5, 1.0, 0.0]))
    assert scores["worst_decile"] == 0.0
    assert scores["without_test"] == 1


def test_a_sample_of_clients_says_who_they_are():
    scores = score_clients(np.asarray([1, 0]), np.asarray([2, 1]), np.asarray([7, 40]))
    assert (scores["clients"], scores["per_client"]) == ([7, 40], [0.5, 0.0])
    assert "clients" not in score_clients(np.asarray([1, 0]), np.asarray([2, 1]))


def test_worst_decile_is_a_mean_over_a_tenth():
    assert score_clients(np.arange(20), np.full(20, 20))["worst_decile"] == pytest.approx((0 + 1) / 2 / 20)


def federation(folder, name: str, devices: int):
    """Scores of the toy federation as a function of ids, one client alone, and what both rest on."""
    frozen, data = toy.backbone(folder), toy.dataset_for(name)
    offsets = np.concatenate([[0], np.cumsum(toy.COUNTS)])
    everyone = np.arange(sum(toy.COUNTS), dtype=np.int32)
    clients = PartitionedClients(Partition(everyone, offsets, everyone, offsets))
    make = partial(METHODS[name], toy.settings(**{"method.name": name}).method, frozen)

    def draw(ids):
        return jax.vmap(lambda k: nnx.split(make(jax.random.fold_in(jax.random.key(7), k)), Shared, Private)[2])(ids)

    graph, shared, _ = nnx.split(make(jax.random.key(1)), Shared, Private)
    people = Population(draw, len(toy.COUNTS))
    mesh = make_mesh(devices)
    labels = np.asarray(data.labels)
    placed = replicate(mesh, (shared, data, frozen))

    @jax.jit
    def answers(private):
        module = nnx.merge(graph, shared, private)
        logits = module.global_logits(data.features[0], frozen), module.personal_logits(data.features[0], frozen)
        return [jnp.argmax(each, axis=1) for each in logits]

    def alone(client: int) -> list[np.ndarray]:
        """Whether global and personal model are right on each image."""
        private = jax.tree.map(lambda leaf: leaf[0], people.gather(np.array([client])))
        return [np.asarray(guess) == labels for guess in answers(private)]

    def score(ids, **options):
        return score_federation(
            graph, mesh, placed[0], people, clients, np.asarray(ids), placed[1], labels, placed[2], **options
        )

    return score, alone, clients, data.features[0], labels, frozen


@pytest.mark.parametrize(("devices", "lanes"), [(1, 1), (8, 1), (2, 3)])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_federation_scores_equal_a_plain_loop(tiny_folder, name, devices, lanes):
    score, alone, clients, features, labels, frozen = federation(tiny_folder, name, devices)
    ids = np.arange(len(toy.COUNTS))
    scores = score(ids, lanes=lanes)

    global_right, _ = alone(0)
    personal = [alone(client)[1] for client in ids]
    own = [right[toy.rows_of(client)].mean() for client, right in zip(ids, personal, strict=True)]
    whole = [right.mean() for right in personal]
    assert scores["global"]["accuracy"] == pytest.approx(global_right.mean())
    assert scores["personalised"]["per_client"] == pytest.approx(own)
    assert scores["personal_on_pooled"]["per_client"] == pytest.approx(whole)
    by_owner = [global_right[toy.rows_of(k)].mean() for k in ids]
    assert scores["global_on_clients"]["per_client"] == pytest.approx(by_owner)

    zero = score_zero_shot(np.asarray(features), labels, clients, ids, frozen)
    right = np.asarray(jnp.argmax(features[:, :16] @ frozen.zero_shot.T, axis=1)) == labels
    assert zero["accuracy"] == pytest.approx(right.mean())
    assert zero["on_clients"]["weighted_mean"] == pytest.approx(right.mean())


def test_blocks_change_nothing_and_a_sample_has_the_scores_of_the_whole(tiny_folder, monkeypatch):
    """Clients and pooled images go by the piece, the last of them filled up."""
    score, _, clients, features, labels, frozen = federation(tiny_folder, "fedrsclip", 2)
    ids, sample = np.arange(len(toy.COUNTS)), np.array([1, 4, 9])
    whole, zero = score(ids), score_zero_shot(np.asarray(features), labels, clients, ids, frozen)
    monkeypatch.setattr(evaluate, "_CLIENTS", 4)
    monkeypatch.setattr(evaluate, "_IMAGES", 7)
    assert score(ids) == whole
    assert score_zero_shot(np.asarray(features), labels, clients, ids, frozen) == zero

    few, some = score(sample, complete=False), score_zero_shot(np.asarray(features), labels, clients, sample, frozen)
    assert few["global"] == whole["global"]
    assert "personal_on_pooled" not in few
    for name in ("personalised", "global_on_clients"):
        assert few[name]["clients"] == sample.tolist()
        assert few[name]["per_client"] == [whole[name]["per_client"][k] for k in sample]
    assert some["on_clients"]["per_client"] == [zero["on_clients"]["per_client"][k] for k in sample]


def test_a_sample_of_a_partition_has_test_images():
    """Everyone by default; else some of those that can be scored, the same whatever the round."""
    offsets = np.arange(21)
    tests = np.repeat(np.arange(11), 2)[1:]  # every second client has one
    clients = PartitionedClients(
        Partition(np.arange(20, dtype=np.int32), offsets, np.arange(10, dtype=np.int32), tests)
    )
    assert clients.scored(0, 0).tolist() == list(range(20))
    sample = clients.scored(6, 0)
    assert len(np.unique(sample)) == 6
    assert clients.counts(sample, "test").tolist() == [1] * 6
    assert clients.scored(6, 0).tolist() == sample.tolist()
    assert len(clients.scored(20, 0)) == 20

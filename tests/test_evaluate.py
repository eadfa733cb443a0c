"""Scores worked out by hand, and the federation's scores against a plain loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.data.clients import Clients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.evaluate import (
    calibration_error,
    score_clients,
    score_federation,
    score_pooled,
    score_zero_shot,
)
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.federated.round import make_mesh, replicate
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Private, Shared
from tests import toy


def test_pooled_scores():
    #       truth 0: hit, hit, taken for 1; truth 1: hit; truth 2: never shown
    guess = np.asarray([0, 0, 1, 1])
    labels = np.asarray([0, 0, 0, 1])
    scores = score_pooled(np.eye(3, dtype=np.float32)[guess] * 10, labels)
    assert scores["accuracy"] == 0.75
    assert scores["per_class"] == [pytest.approx(2 / 3), 1.0, None]
    # F1: class 0 precision 1, recall 2/3 -> 0.8; class 1 precision 1/2, recall 1 -> 2/3; class 2 does not count.
    assert scores["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_calibration_error_is_the_gap_between_confidence_and_accuracy():
    sure = np.asarray([[100.0, 0.0]] * 4)
    assert calibration_error(sure, np.asarray([0, 0, 0, 0])) == pytest.approx(0, abs=1e-6)
    assert calibration_error(sure, np.asarray([0, 0, 1, 1])) == pytest.approx(0.5, abs=1e-6)
    # Confidence 0.8 and 0.6 fall into different bins: gaps 0.2 and 0.6 over two images.
    mixed = np.log(np.asarray([[0.8, 0.2], [0.6, 0.4]]))
    assert calibration_error(mixed, np.asarray([0, 1])) == pytest.approx((0.2 + 0.6) / 2, abs=1e-6)


def test_clients_scores_leave_out_who_has_no_test_image():
    scores = score_clients(np.asarray([5, 0, 1, 0]), np.asarray([10, 0, 1, 4]))
    assert scores["per_client"] == [0.5, None, 1.0, 0.0]
    assert scores["mean"] == pytest.approx(0.5)
    assert scores["weighted_mean"] == pytest.approx(6 / 15)
    assert scores["std"] == pytest.approx(np.std([0.5, 1.0, 0.0]))
    assert scores["worst_decile"] == 0.0
    assert scores["without_test"] == 1


def test_worst_decile_is_a_mean_over_a_tenth():
    assert score_clients(np.arange(20), np.full(20, 20))["worst_decile"] == pytest.approx((0 + 1) / 2 / 20)


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("name", sorted(METHODS))
def test_federation_scores_equal_a_plain_loop(tiny_folder, name, devices):
    frozen, data = toy.backbone(tiny_folder), toy.dataset()
    offsets = np.concatenate([[0], np.cumsum(toy.COUNTS)])
    everyone = np.arange(sum(toy.COUNTS), dtype=np.int32)
    clients = Clients(Partition(everyone, offsets, everyone, offsets))
    config = toy.settings(**{"method.name": name})
    make = partial(METHODS[name], config.method, frozen)

    def draw(ids):
        return jax.vmap(lambda k: nnx.split(make(jax.random.fold_in(jax.random.key(7), k)), Shared, Private)[2])(ids)

    graph, shared, _ = nnx.split(make(jax.random.key(1)), Shared, Private)
    people = Population(draw, len(toy.COUNTS))
    mesh = make_mesh(devices)
    labels = np.asarray(data.labels)
    placed = replicate(mesh, (shared, data, frozen))
    scores = score_federation(graph, mesh, placed[0], people, clients, placed[1], labels, placed[2])

    features = data.features[0]
    alone = nnx.merge(graph, shared, nnx.split(make(jax.random.key(1)), Shared, Private)[2])
    global_right = np.asarray(jnp.argmax(alone.global_logits(features, frozen), axis=1)) == labels
    own, whole = [], []
    for client in range(len(toy.COUNTS)):
        private = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), people.gather(np.asarray([client])))
        module = nnx.merge(graph, shared, private)
        right = np.asarray(jnp.argmax(module.personal_logits(features, frozen), axis=1)) == labels
        own.append(right[toy.rows_of(client)].mean())
        whole.append(right.mean())
    assert scores["global"]["accuracy"] == pytest.approx(global_right.mean())
    assert scores["personalised"]["per_client"] == pytest.approx(own)
    assert scores["personal_on_pooled"]["per_client"] == pytest.approx(whole)
    by_owner = [global_right[toy.rows_of(k)].mean() for k in range(len(toy.COUNTS))]
    assert scores["global_on_clients"]["per_client"] == pytest.approx(by_owner)

    zero = score_zero_shot(np.asarray(features), labels, clients, frozen)
    right = np.asarray(jnp.argmax(features @ frozen.zero_shot.T, axis=1)) == labels
    assert zero["accuracy"] == pytest.approx(right.mean())
    assert zero["on_clients"]["weighted_mean"] == pytest.approx(right.mean())

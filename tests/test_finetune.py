"""Fine-tuning by each client, against clients one after another."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.evaluate import score_federation
from fedrsclip_jax.federated.client import Hyper, LocalPlan
from fedrsclip_jax.federated.finetune import FineTuning, fine_tune
from fedrsclip_jax.federated.mesh import make_mesh, replicate, spread
from fedrsclip_jax.federated.population import Population
from fedrsclip_jax.methods import METHODS
from fedrsclip_jax.methods.base import Private, Shared
from tests import plain, toy

EPOCHS = 2
KEY = jax.random.key(5)
IDS = np.arange(len(toy.COUNTS))


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "devices", "lanes"), [("promptfl", 1, 1), ("promptfl", 2, 3), ("fedrsclip", 2, 3), ("local_coop", 1, 1)]
)
def test_clients_fine_tune_as_in_a_plain_loop_and_are_scored_after_it(tiny_folder, name, devices, lanes):
    frozen, data, config = toy.backbone(tiny_folder), toy.dataset(), toy.settings(**{"method.name": name})
    make = partial(METHODS[name], config.method, frozen)

    def draw(ids):
        return jax.vmap(lambda k: nnx.split(make(jax.random.fold_in(jax.random.key(7), k)), Shared, Private)[2])(ids)

    graph, shared, _ = nnx.split(make(jax.random.key(1)), Shared, Private)
    people, mesh = Population(draw, len(IDS)), make_mesh(devices)
    by_hand = []
    for client in IDS:
        private = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), people.gather(np.array([client])))
        key = jax.random.fold_in(KEY, client)
        by_hand.append(plain.trained(config, graph, (shared, private), client, key, data, frozen, EPOCHS))

    placed = replicate(mesh, (shared, data, frozen))
    how = FineTuning(LocalPlan(EPOCHS, 4, "sgd"), *replicate(mesh, (Hyper.of(config), KEY)))
    slots = np.where(np.arange(12) < len(IDS), np.arange(12), -1)
    private, members = spread(mesh, (people.gather(slots), toy.members(slots)))
    ours = fine_tune(how, graph, mesh, lanes, placed[0], private, members, placed[1], placed[2])
    for client, expected in enumerate(by_hand):
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a[client], b, rtol=0, atol=1e-5)

    @jax.jit
    def guess(prompts):
        return jnp.argmax(nnx.merge(graph, *prompts).personal_logits(data.features[0], frozen), axis=1)

    right = [np.asarray(guess(prompts)) == np.asarray(data.labels) for prompts in by_hand]
    offsets = np.concatenate([[0], np.cumsum(toy.COUNTS)])
    everyone = np.arange(sum(toy.COUNTS), dtype=np.int32)
    clients = PartitionedClients(Partition(everyone, offsets, everyone, offsets))
    score = partial(
        score_federation, graph, mesh, placed[0], people, clients, IDS, placed[1], np.asarray(data.labels), placed[2]
    )
    before, after = score(lanes=lanes), score(lanes=lanes, tuning=how)
    own = [each[toy.rows_of(client)].mean() for client, each in enumerate(right)]
    assert after["personalised"]["per_client"] == pytest.approx(own)
    assert after["personal_on_pooled"]["per_client"] == pytest.approx([each.mean() for each in right])
    assert after["personalised"]["mean"] > before["personalised"]["mean"], "it learns the images that it is scored on"
    assert after["global"] == before["global"]
    assert after["global_on_clients"] == before["global_on_clients"]

"""What is saved comes back, and only as many checkpoints are kept as asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import Server, ServerPlan, start_server, step_server
from fedrsclip_jax.federated.population import Population

PLAN = ServerPlan(optimizer="momentum")


def draw(ids):
    return {"private": jnp.zeros((len(ids), 2, 3)) + jnp.asarray(ids, jnp.float32)[:, None, None]}


@pytest.fixture
def state():
    server = start_server(PLAN, {"shared": jnp.arange(6.0).reshape(2, 3)})
    server = step_server(PLAN, jnp.asarray(1.0), server, {"shared": jnp.ones((2, 3))})
    people = Population(draw, 100)
    people.scatter(np.asarray([9, 4]), {"private": np.random.default_rng(0).normal(size=(2, 2, 3)).astype(np.float32)})
    return server, people


def test_what_is_saved_comes_back_bit_for_bit(state, tmp_path):
    server, people = state
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, server, people)
    fresh, empty = start_server(PLAN, {"shared": jnp.zeros((2, 3))}), Population(draw, 100)
    with Checkpoints(tmp_path) as checkpoints:
        number, restored = checkpoints.restore(fresh, empty)
    assert number == 7
    for a, b in zip(jax.tree.leaves(restored), jax.tree.leaves(server), strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(empty.drawn, [4, 9])
    ids = np.asarray([4, 5, 9])
    np.testing.assert_array_equal(empty.gather(ids)["private"], people.gather(ids)["private"])


def test_the_newest_are_kept(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, *state)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_one_is_chosen_by_its_round_and_an_optimiser_may_stay_behind(state, tmp_path):
    server, people = state
    later = server._replace(shared={"shared": server.shared["shared"] + 1})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, server, people)
        checkpoints.save(5, later, people)
    for which, number, expected in (("2", 2, server), ("5", 5, later), ("last", 5, later)):
        with Checkpoints(tmp_path) as checkpoints:
            found, restored = checkpoints.restore(Server(server.shared, ()), Population(draw, 100), which)
        assert found == number
        np.testing.assert_array_equal(restored.shared["shared"], expected.shared["shared"])
    for which in ("3", "best", "newest"):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=f"--checkpoint={which}.*2, 5"):
            checkpoints.restore(server, people, which)


def test_a_folder_without_a_checkpoint_is_refused(state, tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore(*state)

"""What is saved comes back, and only as many checkpoints are kept as asked for."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fedrsclip_jax.checkpoint import Checkpoints
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import ServerPlan, start_server, step_server
from fedrsclip_jax.federated.population import Population

pytestmark = pytest.mark.newest

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
        checkpoints.save(7, server, people, {"lines": [0.1, None, "é"]})
    fresh, empty = start_server(PLAN, {"shared": jnp.zeros((2, 3))}), Population(draw, 100)
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore()
    assert (saved.round, saved.record) == (7, {"lines": [0.1, None, "é"]})
    for a, b in zip(jax.tree.leaves(saved.server(fresh)), jax.tree.leaves(server), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    empty.restore(saved.population)
    np.testing.assert_array_equal(empty.took_part, [4, 9])
    ids = np.asarray([4, 5, 9])
    np.testing.assert_array_equal(empty.gather(ids)["private"], people.gather(ids)["private"])


def test_the_newest_are_kept(state, tmp_path):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, *state)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2", "3"]


def test_one_is_chosen_by_its_round(state, tmp_path):
    server, people = state
    later = server._replace(shared={"shared": server.shared["shared"] + 1})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(2, server, people)
        checkpoints.save(5, later, people)
    for which, number, expected in (("2", 2, server), ("5", 5, later), ("last", 5, later)):
        with Checkpoints(tmp_path) as checkpoints:
            saved = checkpoints.restore(which)
        assert saved.round == number
        np.testing.assert_array_equal(saved.shared[0], expected.shared["shared"])
    for which in ("3", "newest"):
        with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match=f"--checkpoint={which}.*2, 5"):
            checkpoints.restore(which)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="holds no checkpoint"):
        checkpoints.restore()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest() is None
    assert not (tmp_path / "checkpoints").exists(), "who only looks writes nothing"


def test_nothing_shared_nobody_drawn_and_many_variables(tmp_path):
    """Empty parts come back empty, and a dozen variables in their order."""
    many = Population(lambda ids: [jnp.zeros((len(ids), 1)) + i for i in range(12)], 10)
    server = start_server(ServerPlan(), {})
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, server, many)
        many.scatter(np.asarray([3]), [np.full((1, 1), 10.0 + i, np.float32) for i in range(12)])
        checkpoints.save(2, server, many)
    for number, ids, values in (("1", [], [[i] for i in range(12)]), ("2", [3], [[10 + i] for i in range(12)])):
        with Checkpoints(tmp_path) as checkpoints:
            saved = checkpoints.restore(number)
        many.restore(saved.population)
        np.testing.assert_array_equal(many.took_part, ids)
        np.testing.assert_array_equal(np.concatenate(many.gather(np.asarray([3]))), values)
        assert jax.tree.leaves(saved.server(server).shared) == []


def test_the_newest_sound_one_is_gone_on_from_and_damaged_ones_are_set_aside(state, tmp_path, caplog):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for number in (1, 2, 3):
            checkpoints.save(number, *state)
    for file in (tmp_path / "checkpoints" / "3").rglob("*"):
        if file.is_file():
            file.write_bytes(file.read_bytes()[:-1])
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        assert checkpoints.restore().round == 2
        assert checkpoints.rounds() == [1, 2, 3], "looking changes nothing"
        saved = checkpoints.newest()
        assert saved is not None
        assert saved.round == 2
        assert checkpoints.rounds() == [1, 2, 3], "nor does asking from where to go on"
        checkpoints.go_on_after(saved.round)
        assert checkpoints.rounds() == [1, 2]
        assert (tmp_path / "damaged" / "checkpoints-3").is_dir(), "it may be worth a look"
        checkpoints.save(3, *state)
    assert "checkpoint 3" in caplog.text
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore().round == 3


def test_what_cannot_be_read_for_the_moment_is_not_taken_for_damaged(state, tmp_path, monkeypatch):
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        checkpoints.save(1, *state)
        checkpoints.save(2, *state)

    def busy(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with Checkpoints(tmp_path) as checkpoints:
        with monkeypatch.context() as patch:
            patch.setattr(ocp.CheckpointManager, "restore", busy)
            with pytest.raises(InputError, match=r"Too many open files.*nothing is lost"):
                checkpoints.newest()
        saved = checkpoints.newest()
    assert saved is not None
    assert saved.round == 2


def test_all_are_kept_until_all_but_one_are_deleted(state, tmp_path):
    with Checkpoints(tmp_path, None, "best") as checkpoints:
        for number in (1, 2, 5):
            checkpoints.save(number, *state)
        checkpoints.wait()
        assert checkpoints.rounds() == [1, 2, 5]
        checkpoints.delete_but(2)
        assert checkpoints.rounds() == [2]
        checkpoints.delete_but(None)
        assert checkpoints.rounds() == []


def test_a_state_of_other_shapes_is_refused(state, tmp_path):
    server, people = state
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, *state)
    with Checkpoints(tmp_path) as checkpoints:
        saved = checkpoints.restore()
    for other in ({"shared": jnp.zeros((7, 3))}, {}, {"shared": server.shared["shared"], "more": jnp.zeros(2)}):
        with pytest.raises(InputError, match="cannot be changed within a run"):
            saved.server(start_server(ServerPlan(), other))
    other = Population(lambda ids: jnp.zeros((len(ids), 7)), 10)
    people.scatter(np.asarray([3]), people.gather(np.asarray([3])))
    with pytest.raises(InputError, match="cannot be changed within a run"):
        other.restore(people.state())


def test_a_file_where_checkpoints_go_is_refused_at_the_start(tmp_path):
    (tmp_path / "checkpoints").write_text("")
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(InputError, match="is a file"):
        checkpoints.newest()

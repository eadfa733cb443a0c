"""Private variables are kept for those who were drawn, and drawn anew, always alike, for those who were not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedrsclip_jax.federated.population import Population


def draw(ids):
    return {"prompt": jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(jax.random.key(0), k), (2, 3)))(ids)}


def test_an_untouched_client_is_its_draw():
    people = Population(draw, 10**9)
    ids = np.asarray([5, 123_456_789, 5])
    np.testing.assert_array_equal(people.gather(ids)["prompt"], draw(jnp.asarray(ids, jnp.int32))["prompt"])
    assert len(people.took_part) == 0


def test_what_is_kept_comes_back_and_padding_does_not_count():
    people = Population(draw, 1000)
    people.scatter(np.asarray([7, -1, 3]), {"prompt": np.arange(18.0, dtype=np.float32).reshape(3, 2, 3)})
    np.testing.assert_array_equal(people.took_part, [3, 7])
    back = people.gather(np.asarray([3, 7, -1]))["prompt"]
    np.testing.assert_array_equal(back[0].ravel(), np.arange(12, 18))
    np.testing.assert_array_equal(back[1].ravel(), np.arange(6))
    assert np.isfinite(back[2]).all()


def test_a_row_is_as_large_as_its_variables():
    assert Population(draw, 10).row_bytes == 2 * 3 * 4
    assert Population(lambda ids: {}, 10).row_bytes == 0


def test_memory_follows_those_drawn():
    people = Population(draw, 10**9)
    rng = np.random.default_rng(0)
    for start in range(0, 1000, 50):
        people.scatter(rng.integers(0, 10**6, 50) * 1000 + start, {"prompt": np.ones((50, 2, 3), np.float32)})
    assert len(people.took_part) == 1000
    assert people._leaves[0].nbytes <= 2 * 1000 * 2 * 3 * 4


def test_a_later_value_replaces_an_earlier():
    people = Population(draw, 10)
    for value in (1.0, 2.0):
        people.scatter(np.asarray([4]), {"prompt": np.full((1, 2, 3), value, np.float32)})
    np.testing.assert_array_equal(people.gather(np.asarray([4]))["prompt"], np.full((1, 2, 3), 2.0))


def test_state_restores():
    people, other = Population(draw, 100), Population(draw, 100)
    people.scatter(np.asarray([9, 2]), {"prompt": np.random.default_rng(1).normal(size=(2, 2, 3)).astype(np.float32)})
    other.restore(people.state())
    everyone = np.arange(12)
    np.testing.assert_array_equal(people.gather(everyone)["prompt"], other.gather(everyone)["prompt"])
    np.testing.assert_array_equal(other.took_part, [2, 9])


def test_who_has_its_initial_draw_is_forgotten():
    """As in a checkpoint of an older version, which kept clients that were drawn and never answered."""
    people = Population(draw, 100)
    ids = np.asarray([9, 2, 5])
    rows = np.asarray(draw(jnp.asarray(ids, jnp.int32))["prompt"]).copy()
    rows[1, 0, 0] += 1e-6
    people.scatter(ids, {"prompt": rows})
    people.forget_untrained()
    np.testing.assert_array_equal(people.took_part, [2])
    assert people.has(np.asarray([9, 2, -1])).tolist() == [False, True, False]
    np.testing.assert_array_equal(people.gather(ids)["prompt"], rows)
    people.forget_untrained()
    np.testing.assert_array_equal(people.took_part, [2])


@pytest.mark.parametrize("ids", [[], [1, 2]])
def test_a_method_without_private_variables_is_as_good(ids):
    people = Population(lambda ids: {}, 10)
    people.scatter(np.asarray(ids, int), {})
    other = Population(lambda ids: {}, 10)
    other.restore(people.state())
    other.forget_untrained()
    assert other.gather(np.asarray([1])) == {}
    np.testing.assert_array_equal(other.took_part, ids)

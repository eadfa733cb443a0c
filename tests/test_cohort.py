"""Cohorts are drawn without a generator's state, and laid out so that little waits."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrsclip_jax.federated.cohort import draw_answering, draw_cohort, lay_out, most_turns


def test_a_cohort_is_a_function_of_seed_and_round():
    a, b = draw_cohort(1, 5, 100, 10), draw_cohort(1, 5, 100, 10)
    np.testing.assert_array_equal(a, b)
    assert len(set(a)) == 10
    assert not np.array_equal(a, draw_cohort(1, 6, 100, 10))
    assert not np.array_equal(a, draw_cohort(2, 5, 100, 10))


def test_zero_is_everyone():
    np.testing.assert_array_equal(draw_cohort(0, 1, 7, 0), np.arange(7))
    np.testing.assert_array_equal(draw_cohort(0, 1, 7, 9), np.arange(7))


def test_everyone_has_the_same_chance():
    drawn = np.bincount(np.concatenate([draw_cohort(0, r, 20, 5) for r in range(2000)]), minlength=20)
    # 2,000 draws at 1/4: mean 500, deviation 19; six of them leave a one in a billion chance of a false alarm.
    assert np.abs(drawn - 500).max() < 6 * 19.4


def test_a_draw_costs_by_the_cohort():
    """A billion clients would take 8 GB and seconds if they were listed."""
    began = time.perf_counter()
    ids = draw_cohort(0, 1, 10**9, 64)
    assert len(set(ids)) == 64
    assert ids.max() > 10**8
    assert time.perf_counter() - began < 1


def test_dropout_follows_the_client_not_the_slot():
    ids = np.arange(1000)
    answers = draw_answering(0, 3, ids, 0.3)
    assert abs(answers.mean() - 0.7) < 0.1  # deviation 0.014
    np.testing.assert_array_equal(draw_answering(0, 3, ids[::-1], 0.3)[::-1], answers)
    np.testing.assert_array_equal(draw_answering(0, 3, np.asarray([-1, 4]), 0.0), [False, True])


@settings(deadline=None, derandomize=True)
@given(
    steps=st.lists(st.integers(0, 50), min_size=1, max_size=60),
    devices=st.sampled_from([1, 2, 4, 8]),
    lanes=st.integers(1, 8),
)
def test_a_timetable_gives_every_client_its_steps_one_a_turn(steps, devices, lanes):
    steps = np.asarray(steps)
    table = lay_out(steps, devices, lanes)
    members = table.members[table.members >= 0]
    np.testing.assert_array_equal(np.sort(members), np.arange(len(steps)))
    for device in range(devices):
        turns = table.turns[device]
        assert (turns[table.length[device] :] == -1).all()
        for slot, client in enumerate(table.members[device]):
            mine = turns == slot
            assert mine.sum() == (steps[client] if client >= 0 else 0)
            assert mine.sum(axis=1).max(initial=0) <= 1, "a client's steps follow each other"
    spent = devices * lanes * table.length.max()
    assert table.wasted == pytest.approx(1 - steps.sum() / spent if spent else 0)


@settings(deadline=None, derandomize=True)
@given(steps=st.lists(st.integers(1, 50), min_size=1, max_size=60), lanes=st.integers(1, 8))
def test_a_timetable_is_as_short_as_can_be(steps, lanes):
    table = lay_out(np.asarray(steps), 1, lanes)
    assert table.length[0] == max(max(steps), -(-sum(steps) // lanes))


def test_rows_of_a_timetable_may_be_fixed():
    table = lay_out(np.asarray([3, 1]), 1, 1, turns=most_turns(3, 2, 1))
    assert table.turns.shape == (1, 6, 1)
    assert table.length[0] == 4


def test_nothing_is_wasted_where_nothing_waits():
    assert lay_out(np.arange(1, 11), 1, 1).wasted == 0
    assert lay_out(np.full(8, 3), 2, 4).wasted == 0
    assert lay_out(np.asarray([3, 2, 1]), 1, 2).wasted == 0, "a client moves on to the lane that is free"


def test_waste_is_lanes_and_devices_that_wait():
    # Steps 5 and 1 in two lanes: ten lane-steps for six.
    assert lay_out(np.asarray([5, 1]), 1, 2).wasted == pytest.approx(0.4)
    # The same on two devices: the second waits four of five steps.
    assert lay_out(np.asarray([5, 1]), 2, 1).wasted == pytest.approx(0.4)


@pytest.mark.parametrize(("devices", "lanes"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_a_hundred_uneven_clients_waste_little(devices, lanes):
    """Dirichlet 0.1 over ten classes, 10,000 images in batches of 32."""
    shares = np.random.default_rng(0).dirichlet(np.full(100, 0.1), 10)
    steps = np.ceil(np.maximum(1000 * shares.sum(axis=0), 8) / 32).astype(int)
    assert lay_out(steps, devices, lanes).wasted < 0.1

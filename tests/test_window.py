"""What is laid out for a dispatch: whose images lie where, and how many rounds there is room for."""

import numpy as np
import pytest

from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.federated.client import Dataset, LocalPlan
from fedrsclip_jax.federated.mesh import make_mesh
from fedrsclip_jax.federated.window import Planner, packed_images, streamed_images
from tests import toy

MANY = 10**6


def owners(counts) -> PartitionedClients:
    """Clients with so many images each, which are numbered from the last client's to the first's."""
    offsets = np.concatenate([[0], np.cumsum(counts)])
    images = np.arange(offsets[-1], dtype=np.int32)[::-1].copy()
    return PartitionedClients(Partition(images, offsets, images, offsets))


def planner(clients=None, most_rows: int = MANY, *, devices: int = 1, sent: list | None = None, **keys) -> Planner:
    """Streams images, whose label is their number, if there is a list that the numbers may be written to."""
    config = toy.settings(**{"rounds": "40", "eval.every": "40", **keys})

    def supply(rows):
        sent.append(rows)
        return Dataset(np.zeros((1, len(rows), 2), np.float32), rows)

    clients = owners(toy.COUNTS) if clients is None else clients
    return Planner(
        config, clients, LocalPlan.of(config), make_mesh(devices), 1, most_rows, None if sent is None else supply
    )


CASES = pytest.mark.parametrize("devices", [1, 4])
COHORTS = pytest.mark.parametrize("keys", [{}, {"cohort": "4"}, {"cohort": "4", "dropout": "0.5"}], ids=str)


@CASES
@COHORTS
def test_streamed_images_lie_end_to_end_on_the_device_of_their_owner(devices, keys):
    sent = []
    plan = planner(devices=devices, sent=sent, **keys)
    for first in range(1, 6):
        window = plan.prepare(first, 1)
        assert window.data is not None
        packed = len(window.data.labels) // devices
        assert window.data.features.shape == (1, devices * packed, 2)
        rows, counts = np.asarray(window.members.rows), np.asarray(window.members.counts)
        expected, owned = plan.clients.padded(window.ids, "train", rows.shape[1])
        np.testing.assert_array_equal(counts, owned)
        assert (rows < packed).all(), "a device reads what lies on it"
        for slot, count in enumerate(counts):
            here = slot // plan.rows * packed + rows[slot, :count]
            np.testing.assert_array_equal(np.asarray(window.data.labels)[here], expected[slot, :count])
        lies = [rows[slot, :count] for slot, count in enumerate(counts[: plan.rows])]
        np.testing.assert_array_equal(np.concatenate(lies), np.arange(counts[: plan.rows].sum()))


def test_everyones_images_are_sent_once_and_a_cohorts_each_round():
    everyone, cohort = [], []
    for sent, keys in ((everyone, {"dropout": "0.5"}), (cohort, {"cohort": "4"})):
        plan = planner(sent=sent, **keys)
        for first in range(1, 4):
            plan.prepare(first, 1)
    assert len(everyone) == 1
    assert len(cohort) == 3


def test_no_more_rows_are_sent_than_the_largest_clients_have():
    """Sixty images; the largest four clients have 12 + 11 + 9 + 7. Rounded to a multiple of four."""
    for keys, rows in (({}, 60), ({"cohort": "4"}, 40), ({"cohort": "1"}, 12)):
        sent = []
        planner(sent=sent, **keys).prepare(1, 1)
        assert [len(each) for each in sent] == [rows]
        config = toy.settings(**keys)
        assert packed_images(config, owners(toy.COUNTS), 1) == rows
        # Of a cohort the next round's arrive while this one's are there.
        assert streamed_images(config, owners(toy.COUNTS), 1) == (2 * rows if keys else rows)


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_of_very_uneven_clients_little_more_is_sent_than_there_is(devices):
    """Dirichlet 0.1 over ten classes and 100 clients. Rows as wide as the longest client would be three times that."""
    shares = np.random.default_rng(0).dirichlet(np.full(100, 0.1), 10)
    counts = np.maximum(1000 * shares.sum(axis=0), 8).astype(int)
    clients, sent = owners(counts), []
    planner(clients, devices=devices, sent=sent, **{"local.batch_size": "32"}).prepare(1, 1)
    assert 100 * clients.width("train") > 3 * counts.sum()
    # An eighth is rounding; devices with equal steps differ by less than a batch a client.
    assert counts.sum() <= len(sent[0]) <= 1.3 * counts.sum()
    half = planner(clients, devices=devices, sent=sent, cohort="50")
    half.prepare(1, 1)
    assert len(sent[1]) <= 1.125 * devices * clients.most_images(half.slots, "train") <= 1.3 * devices * counts.sum()


@CASES
@COHORTS
def test_all_windows_of_a_run_have_one_shape(devices, keys):
    def shapes(window):
        return [leaf.shape for part in (window.members, window.schedule, window.data) for leaf in part]

    plan = planner(devices=devices, sent=[], **keys)
    assert all(shapes(plan.prepare(first, 1)) == shapes(plan.prepare(1, 1)) for first in range(2, 9))


def test_a_dispatch_has_rounds_for_whose_private_variables_there_is_room():
    assert planner(cohort="4").room == 32, "ten clients are all that there are"
    few = owners([1] * 1000)
    assert planner(few, cohort="4").room == 32
    assert planner(few, 1000, cohort="4").room == 32
    assert planner(few, 999, cohort="40").room == 24
    assert planner(few, 999, cohort="40").rows == 24 * 40
    assert planner(few, 41, cohort="40").room == 1
    assert planner(few, 0, cohort="40").room == 1, "a round's have to fit"
    assert planner(few, 999, cohort="40", **{"spmd.rounds_per_dispatch": "8"}).room == 8
    assert planner(few, 200, cohort="40", **{"spmd.rounds_per_dispatch": "8"}).room == 5
    assert planner(few, 10).room == 32, "everyone is there in each round anyway"


def test_only_one_device_or_everyone_has_several_rounds_a_dispatch():
    assert planner(cohort="4", devices=2).room == 1
    assert planner(devices=2).room == 32
    assert planner(cohort="4", sent=[]).room == 1, "another cohort has other images"
    assert planner(sent=[]).room == 32

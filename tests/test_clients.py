"""Padded index tables of the clients' images."""

import dataclasses

import numpy as np
import pytest

from fedrsclip_jax import remarks
from fedrsclip_jax.data.clients import Clients, PartitionedClients
from fedrsclip_jax.data.partition import Partition


@pytest.fixture
def clients() -> Clients:
    """Three clients with 2, 0 and 3 training images, and 1, 2 and 0 test images."""
    return PartitionedClients(
        Partition(
            np.array([4, 7, 1, 2, 9], np.int32),
            np.array([0, 2, 2, 5], np.int64),
            np.array([3, 5, 6], np.int32),
            np.array([0, 1, 3, 3], np.int64),
        )
    )


def test_sizes(clients):
    assert clients.num_clients == 3
    everyone = np.arange(3)
    assert clients.counts(everyone, "train").tolist() == [2, 0, 3]
    assert clients.counts(everyone, "test").tolist() == [1, 2, 0]
    assert clients.counts(np.array([2, -1, 0, 2]), "train").tolist() == [3, 0, 2, 3]
    assert (clients.longest("train"), clients.longest("test")) == (3, 2)
    assert clients.pooled.tolist() == [3, 5, 6]


def test_who_cannot_be_scored_is_said(clients):
    said = remarks.of_clients(clients, np.arange(3), 7)
    assert said == "seed 7: 1 of 3 clients has no test image and is not scored"
    assert remarks.of_clients(clients, np.arange(2), 7) is None


def test_the_largest_clients_bound_any_others(clients):
    assert [clients.most_images(number, "train") for number in (1, 2, 3, 4)] == [3, 5, 5, 5]
    assert [clients.most_images(number, "test") for number in (1, 2, 3)] == [2, 3, 3]


def test_rows_are_filled_with_zeros(clients):
    table, counts = clients.padded(np.array([2, 0, 1, 0]), "train", 4)
    assert table.tolist() == [[1, 2, 9, 0], [4, 7, 0, 0], [0, 0, 0, 0], [4, 7, 0, 0]]
    assert counts.tolist() == [3, 2, 0, 2]
    assert table.dtype == counts.dtype == np.int32
    table, counts = clients.padded(np.array([1, 2]), "test", 2)
    assert table.tolist() == [[5, 6], [0, 0]]
    assert counts.tolist() == [2, 0]


def test_minus_one_is_a_padding_client(clients):
    table, counts = clients.padded(np.array([-1, 2, -1]), "train")
    assert table.tolist() == [[0, 0, 0], [1, 2, 9], [0, 0, 0]]
    assert counts.tolist() == [0, 3, 0]


def test_default_width_is_that_of_the_largest_client(clients):
    assert clients.padded(np.array([1]), "train")[0].shape == (1, 3)
    assert clients.padded(np.array([], np.int32), "test")[0].shape == (0, 2)


def test_misuse(clients):
    with pytest.raises(ValueError, match="width=2"):
        clients.padded(np.array([0, 2]), "train", 2)
    for wrong in (-2, 3):
        with pytest.raises(ValueError, match="0 to 2"):
            clients.padded(np.array([0, wrong]), "train")
        with pytest.raises(ValueError, match="0 to 2"):
            clients.counts(np.array([0, wrong]), "train")
    with pytest.raises(ValueError, match="'valid'"):
        clients.padded(np.array([0]), "valid")


def test_everyone_is_scored_or_a_sample_of_those_with_test_images(clients):
    assert clients.scored(0, 0).tolist() == clients.scored(3, 0).tolist() == [0, 1, 2]
    assert clients.scored(2, 0).tolist() == [0, 1]
    samples = {int(k) for seed in range(20) for k in clients.scored(1, seed)}
    assert samples == {0, 1}, "the seed draws, and never the client without a test image"
    assert clients.participants(np.array([1]), 0, 0) is None


def test_a_saved_file_is_told_from_that_of_other_clients(clients, tmp_path, refused):
    clients.save(tmp_path / "partition.npz")
    assert clients.saved_as(tmp_path / "partition.npz")
    moved = clients.partition.train_order[::-1].copy()
    other = PartitionedClients(dataclasses.replace(clients.partition, train_order=moved))
    assert other.digest() != clients.digest()
    assert not other.saved_as(tmp_path / "partition.npz")
    with refused("nothing.npz", "no such file"):
        clients.saved_as(tmp_path / "nothing.npz")


def test_clients_that_are_held_out_are_numbered_by_themselves(clients):
    owners = clients.partition
    some = PartitionedClients.holding_out(owners, 2)
    assert (some.num_clients, some.pooled.tolist()) == (1, [3])
    assert some.padded(np.array([0]), "train")[0].tolist() == [[4, 7]]
    assert some.unseen.num_clients == 2
    assert some.unseen.pooled.tolist() == [5, 6]
    assert some.unseen.counts(np.arange(2), "train").tolist() == [0, 3]
    assert some.unseen.padded(np.array([1]), "train")[0].tolist() == [[1, 2, 9]]
    assert some.unseen.unseen is None


def test_who_is_held_out_is_part_of_what_a_file_says(clients, tmp_path):
    owners = clients.partition
    everyone, some = (PartitionedClients.holding_out(owners, held_out) for held_out in (0, 1))
    assert everyone.unseen is None
    assert everyone.digest() == owners.digest(), "as before there were any"
    alone = PartitionedClients(owners.between(0, 2))
    assert len({everyone.digest(), some.digest(), alone.digest()}) == 3
    some.save(tmp_path / "partition.npz")
    assert some.saved_as(tmp_path / "partition.npz")
    assert not everyone.saved_as(tmp_path / "partition.npz")
    assert Partition.load(tmp_path / "partition.npz").train_order.tolist() == [4, 7]

"""Where a run's training images lie."""

import numpy as np
import pytest

from fedrsclip_jax import federation
from fedrsclip_jax.data.clients import PartitionedClients
from fedrsclip_jax.data.features import Features
from fedrsclip_jax.data.partition import Partition
from fedrsclip_jax.federated.engine import FEATURES_SHARE
from tests import toy

pytestmark = pytest.mark.newest

EMBED = 16
OFFSETS = np.concatenate([[0], np.cumsum(toy.COUNTS)])


def streams(limit: int | None, monkeypatch, views: int = 2, images: int = 80, **keys) -> bool:
    """Of the toy clients, who have sixty images to train on, the largest of them twelve."""
    owned = np.arange(OFFSETS[-1], dtype=np.int32)
    clients = PartitionedClients(Partition(owned, OFFSETS, owned, OFFSETS))
    plain, *others = (np.zeros((images, EMBED), np.float32) for _ in range(views + 1))
    features = Features(plain, (plain,) if views == 1 else tuple(others), np.ones(images, bool))
    monkeypatch.setattr(federation, "memory_limit", lambda mesh: limit)
    return federation._streams(toy.settings(**{"spmd.devices": "1", **keys}), features, clients)


def test_images_are_streamed_where_all_are_too_large_for_a_device(monkeypatch):
    room = 2 * 80 * EMBED * 4 / FEATURES_SHARE
    assert not streams(None, monkeypatch, cohort="1")
    assert not streams(int(room) + 1, monkeypatch, cohort="1")
    assert streams(int(room) - 1, monkeypatch, cohort="1")


@pytest.mark.parametrize(
    ("images", "keys", "saves"),
    [
        (80, {}, True),
        (60, {}, False),  # everyone's are all that there are
        (60, {"spmd.devices": "2"}, True),
        (80, {"cohort": "3"}, True),  # 12 + 11 + 9, and as many of the next round
        (80, {"cohort": "4"}, False),
        (80, {"cohort": "4", "spmd.devices": "2"}, True),
    ],
    ids=str,
)
def test_images_are_streamed_only_where_that_takes_less_memory(monkeypatch, images, keys, saves):
    assert streams(1, monkeypatch, images=images, **keys) is saves
    # A single view has to be there for scoring: whatever is streamed comes on top.
    assert not streams(1, monkeypatch, views=1, images=images, **keys)


def test_the_user_has_the_last_word(monkeypatch):
    assert not streams(1, monkeypatch, cohort="1", **{"spmd.features": "resident"})
    assert streams(None, monkeypatch, views=1, **{"spmd.features": "streamed"})

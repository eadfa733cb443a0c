"""The devices, and how many clients train on one of them at a time."""

from dataclasses import dataclass

import jax
import pytest

from fedrsclip_jax.federated.mesh import choose_lanes, fit_lanes, make_mesh


def test_too_many_devices_are_refused():
    with pytest.raises(ValueError, match=r"spmd\.devices = 64, but JAX sees 8"):
        make_mesh(64)


@dataclass(frozen=True)
class OfAHost:
    """A device as JAX shows those of two hosts, which one machine does not have."""

    id: int
    slice_index: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


def test_hosts_are_slices_of_their_own(monkeypatch):
    devices = [OfAHost(id=i, slice_index=i // 2, process_index=i // 2) for i in range(4)]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    assert [*make_mesh(0).devices] == devices


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_lanes_follow_the_user(platform):
    assert choose_lanes(3, 5, 50, 10, platform) == 3
    assert choose_lanes(64, 5, 50, 10, platform) == 5, "there are no more clients"


def test_lanes_of_a_cpu_are_few():
    assert choose_lanes(0, 10, 100, 10, "cpu") == 4
    assert choose_lanes(0, 3, 100, 10, "cpu") == 3, "there are no more clients"
    assert choose_lanes(0, 10, 100, 50, "cpu") == 2, "more would wait for the longest client"
    assert choose_lanes(0, 1, 0, 0, "cpu") == 1


def test_lanes_of_an_accelerator_are_many_and_stay_busy():
    assert choose_lanes(0, 10, 100, 10, "gpu") == 10
    assert choose_lanes(0, 10, 100, 50, "gpu") == 2, "more would wait for the longest client"
    assert choose_lanes(0, 10_000, 10_000, 1, "gpu") == 256


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("share", [1, 2, 10])
def test_in_order_lanes_do_not_follow_from_the_share_of_a_device(platform, share):
    assert choose_lanes(0, share, 10 * share, 10, platform, ordered=True) == 1
    assert choose_lanes(4, share, 10 * share, 10, platform, ordered=True) == 4


def fitted(most: int, room: float, fixed: int, idle: int, each: int) -> tuple[int, list[int]]:
    """Lanes, and those that were tried, where a program takes `fixed + idle + each x lanes` bytes."""
    tried = []

    def needs(lanes: int) -> tuple[int, int]:
        tried.append(lanes)
        return fixed, idle + each * lanes

    return fit_lanes(most, room, needs), tried


def test_lanes_that_have_room_are_tried_once():
    assert fitted(64, 1000, 300, 0, 10) == (64, [64])


def test_lanes_fill_the_room():
    assert fitted(64, 500, 300, 0, 10) == (20, [64, 20])


def test_what_does_not_grow_with_lanes_is_found_out():
    """Of 940 bytes that may grow 300 do not: 30 lanes would have room if they did, and 15 have."""
    assert fitted(64, 750, 300, 300, 10) == (15, [64, 30])


def test_one_lane_is_the_least():
    assert fitted(64, 299, 300, 0, 10) == (1, [64])
    assert fitted(64, 301, 300, 0, 10) == (1, [64])
    assert fitted(64, 400, 300, 500, 10)[0] == 1
    assert fitted(2, 0, 1, 0, 0) == (1, [2])


@pytest.mark.parametrize("each", [1, 7, 100])
@pytest.mark.parametrize("idle", [0, 50, 900])
@pytest.mark.parametrize("room", [400, 1000, 5000])
def test_at_most_two_programs_are_compiled_and_the_last_one_fits(each, idle, room):
    lanes, tried = fitted(64, room, 300, idle, each)
    assert len(tried) <= 2
    assert lanes == 1 or 300 + idle + each * lanes <= room
    assert lanes == min(tried[-1], max(1, (room - 300 - idle) // each))

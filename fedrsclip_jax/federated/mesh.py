"""The devices of a federation: one axis, `clients`; how values come to lie on it, and come back."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from fedrsclip_jax import distributed
from fedrsclip_jax.errors import InputError

AXIS = "clients"
SAME, SPLIT, SPLIT_BY_ROUND = PartitionSpec(), PartitionSpec(AXIS), PartitionSpec(None, AXIS)

# If the user does not say. The products of a single client are small, and leave an accelerator's cores or a CPU's
# waiting; where more lanes gain little is measured in tests/benchmarks.
MOST_LANES, MOST_LANES_OF_CPU = 256, 4


def make_mesh(devices: int) -> Mesh:
    """The axis of clients over the first `devices` devices; 0 is all of all processes."""
    available = jax.devices()
    if devices > len(available):
        raise InputError(
            f"spmd.devices = {devices}, but JAX sees {len(available)} ({available[0].platform}); use at most that, "
            "or 0 for all"
        )
    if devices not in (0, len(available)) and jax.process_count() > 1:
        raise InputError(
            f"spmd.devices = {devices}, but {jax.process_count()} processes hold {len(available)}, and all of "
            "them have to work; set it to 0 for all"
        )
    chosen = available[: devices or len(available)]
    # Outside of a TPU slice each host is a slice of its own, which `jax.make_mesh` refuses; one axis needs no plan.
    if len({getattr(device, "slice_index", 0) for device in chosen}) > 1:
        return Mesh(np.asarray(chosen), (AXIS,), axis_types=(AxisType.Auto,))
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same values on every device. What a round is given lies as what it returns, or it would compile twice."""
    return _put(tree, NamedSharding(mesh, SAME))


def spread(mesh: Mesh, tree: PyTree, spec: PartitionSpec = SPLIT) -> PyTree:
    """One axis of every leaf, by default the leading one, divided over the devices."""
    # A single device returns what it was given split as whole; handed over split again, it would compile twice.
    return _put(tree, NamedSharding(mesh, spec if mesh.size > 1 else SAME))


def fetch(tree: PyTree) -> PyTree:
    """The values on the host; of several processes, on each of them."""

    def one(leaf: Any) -> np.ndarray:
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
        return np.asarray(leaf)

    return jax.tree.map(one, tree)


def as_varying(x: jax.Array, axes: tuple[str | None, ...] = (AXIS,)) -> jax.Array:
    """A value that each device along some axes is free to change, as the carry of a loop over its own clients must be.

    An axis of None is none.
    """
    for axis in filter(None, axes):
        with suppress(ValueError):  # it varies already, which JAX versions tell in different ways
            x = jax.lax.pcast(x, axis, to="varying")
    return x


def memory_limit(mesh: Mesh) -> int | None:
    """Bytes that JAX may use on any device; None where the platform does not say (CPUs)."""
    stats = mesh.local_devices[0].memory_stats() or {}
    limits = [limit for limit in distributed.exchange(stats.get("bytes_limit")) if limit is not None]
    return min(limits, default=None)


def platform_of(mesh: Mesh) -> str:
    """Of the devices, as JAX names it."""
    return mesh.devices.flat[0].platform


def choose_lanes(asked: int, share: int, steps: int, longest: int, platform: str, ordered: bool = False) -> int:
    """Clients trained at a time on a device, as far as memory allows.

    Args:
      asked: by the user; 0 leaves the choice to us.
      share: clients of a device in a round.
      steps, longest: of all clients of a device together, and of the longest one, in a typical round. A client's
        steps follow each other, so more than `steps / longest` lanes would only wait for it.
      platform: of the devices, as JAX names it.
      ordered: whether results are to be the same bits on any number of devices. Other lanes are other products with
        other last digits, so then their number must not follow from a device's share.

    Returns:
      What the user asked for, or else as many as stay busy, up to some number; ordered, whatever was asked, or one.
    """
    if ordered:
        return asked or 1
    if asked:
        return min(asked, share)
    most = MOST_LANES_OF_CPU if platform == "cpu" else MOST_LANES
    return max(1, min(share, most, steps // max(longest, 1)))


def fit_lanes(most: int, room: float, needs: Callable[[int], tuple[int, int]]) -> int:
    """The most lanes, up to `most`, whose program has room in a device's memory; at least one.

    Every answer of `needs` is a compilation, so at most two are asked for: of `most` lanes, and of as many as would
    have room if all that may grow with lanes did. Where some of it does not, a line through the two answers says how
    many have.

    Args:
      room: bytes.
      needs: bytes of a program of so many lanes: what does not grow with lanes, and what may.
    """
    fixed, growing = needs(most)
    if fixed + growing <= room:
        return most
    fewer = min(most - 1, int(most * (room - fixed) / growing)) if growing else 0
    if fewer <= 1:
        return 1
    excess = sum(needs(fewer)) - room
    if excess <= 0:
        return fewer
    each = (fixed + growing - room - excess) / (most - fewer)
    return max(1, fewer - math.ceil(excess / each)) if each > 0 else 1


def _put(tree: PyTree, sharding: NamedSharding) -> PyTree:
    """Values that every process has, on the devices."""
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    # `device_put` would have the processes compare every value, in a collective each. Here a process sends its devices
    # what is theirs, and meets nobody.
    def one(leaf: Any) -> jax.Array:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return jax.device_put(leaf, sharding)
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf))
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(one, tree)

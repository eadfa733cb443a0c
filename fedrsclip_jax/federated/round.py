"""A round of the federation as one SPMD program.

Devices form one axis, `clients`. Each trains its part of the cohort, a chunk of vmapped lanes at a time; then one
all-reduce adds up what the server needs: the weighted changes of the shared variables, the weights, the figures.
Nothing else crosses between devices, and private variables leave only the device, never the client.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.errors import InputError
from fedrsclip_jax.federated.aggregate import Server, step_server, weighted_sum
from fedrsclip_jax.federated.client import Dataset, Hyper, LocalPlan, Members, train_client

AXIS = "clients"
SPLIT, SAME = PartitionSpec(AXIS), PartitionSpec()


class RoundPlan(NamedTuple):
    """What is fixed at compile time.

    Attributes:
      graph: of the method's module, split by (Shared, Private).
      local: of a client's work.
      mesh: the devices.
      lanes: clients trained at a time on a device.
      server: name of the server's optimiser.
    """

    graph: Any
    local: LocalPlan
    mesh: Mesh
    lanes: int
    server: str


class Traffic(NamedTuple):
    """What a round reduces, counted from the arrays that are reduced."""

    params: int
    bytes: int


def make_mesh(devices: int) -> Mesh:
    """The axis of clients over the first `devices` devices; 0 is all."""
    available = jax.devices()
    if devices > len(available):
        raise InputError(
            f"spmd.devices = {devices}, but JAX sees {len(available)} ({available[0].platform}); use at most that, "
            "or 0 for all"
        )
    chosen = available[: devices or len(available)]
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def replicate(mesh: Mesh, tree: PyTree) -> PyTree:
    """The same values on every device. What a round is given lies as what it returns, or it would compile twice."""
    return jax.device_put(tree, NamedSharding(mesh, SAME))


def spread(mesh: Mesh, tree: PyTree) -> PyTree:
    """The leading axis of every leaf divided over the devices."""
    return jax.device_put(tree, NamedSharding(mesh, SPLIT))


def choose_lanes(clients_per_device: int, cohort: int, mesh: Mesh) -> int:
    """Lanes on a device: what the user says; else one on a CPU (fastest there), and many on an accelerator."""
    share = -(-cohort // mesh.size)
    if clients_per_device:
        return min(clients_per_device, share)
    return 1 if mesh.devices.flat[0].platform == "cpu" else min(share, 32)


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def run_round(
    plan: RoundPlan,
    server: Server,
    private: PyTree,
    members: Members,
    answering: Bool[Array, " slots"],
    data: Dataset,
    backbone: Backbone,
    hyper: Hyper,
    key: PRNGKeyArray,
    number: Int[Array, ""],
) -> tuple[Server, PyTree, dict[str, Float[Array, ""]]]:
    """One round.

    Args:
      plan: static.
      server: replicated; donated.
      private: leading axis `slots`, split over devices; donated.
      members: the cohort in slots (see `cohort.lay_out`).
      answering: clients whose update counts; the others keep their private variables as they were.
      data, backbone, hyper: replicated arguments, never constants of the program.
      key: of the run.
      number: of the round.

    Returns:
      The server after the round, the private variables in the same slots, and figures averaged over images.
    """

    def on_device(shared, private, members, answering, data, backbone, hyper, key):
        # Differentiating a replicated value inside shard_map would insert a hidden psum, and every client would
        # train on the sum of all devices' gradients. As varying values the shared prompts are each device's own.
        shared = jax.tree.map(lambda x: jax.lax.pcast(x, AXIS, to="varying"), shared)

        def lane(private, member):
            return train_client(plan.graph, plan.local, shared, private, member, data, backbone, hyper, key)

        updates = _in_chunks(lane, plan.lanes, (private, members))
        weights = jnp.where(answering, members.counts, 0).astype(jnp.float32)
        kept = jax.tree.map(
            lambda new, old: jnp.where(answering.reshape(-1, *[1] * (old.ndim - 1)), new, old),
            updates.private,
            private,
        )
        local = (
            weighted_sum(updates.delta, weights),
            jnp.sum(weights),
            weighted_sum(updates.sums, answering.astype(jnp.float32)),
        )
        flat, unravel = ravel_pytree(local)
        return unravel(jax.lax.psum(flat, AXIS)), kept

    on_devices = jax.shard_map(
        on_device,
        mesh=plan.mesh,
        in_specs=(SAME, SPLIT, SPLIT, SPLIT, SAME, SAME, SAME, SAME),
        out_specs=(SAME, SPLIT),
    )
    round_key = jax.random.fold_in(key, number)
    (deltas, weight, sums), private = on_devices(
        server.shared, private, members, answering, data, backbone, hyper, round_key
    )
    mean = jax.tree.map(lambda d: d / jnp.maximum(weight, 1.0), deltas)
    server = step_server(plan.server, hyper.server_learning_rate, server, mean)
    images = sums.pop("images")
    figures = {name: total / jnp.maximum(images, 1.0) for name, total in sums.items()}
    return server, private, {**figures, "images": images}


def traffic(shared: PyTree) -> Traffic:
    """What one client sends up in one round: its change of the shared variables, as it is reduced."""
    leaves = jax.tree.leaves(shared)
    return Traffic(sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves))


def _in_chunks(lane, lanes: int, arguments):
    """Maps `lane` over the leading axis, `lanes` at a time, so that memory does not grow with the cohort."""
    if lanes == 1:
        return jax.lax.map(lambda a: lane(*a), arguments)
    chunked = jax.tree.map(lambda x: x.reshape(-1, lanes, *x.shape[1:]), arguments)
    out = jax.lax.map(lambda a: jax.vmap(lane)(*a), chunked)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)

"""Personalised fine-tuning (Wang et al. 2019, arXiv:1910.10252): a client goes on alone from what the federation has.

A client takes the steps that it would take in a round, of local.* and on its own training images, from the shared and
its private variables; then nothing is sent and nothing is kept. Of PromptFL that is a prompt of one's own, fitted in a
few steps from the federation's. Ours: images in their plain view, and every fine-tuning of a run draws the same order.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh
from jaxtyping import PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.federated.client import Client, Dataset, Hyper, LocalPlan, Members
from fedrsclip_jax.federated.mesh import SAME, SPLIT, as_varying


class FineTuning(NamedTuple):
    """How clients fine-tune.

    Attributes:
      plan: of a client's work; its epochs are those of the fine-tuning.
      hyper: of the run, on the devices.
      key: from which orders are drawn, on the devices.
    """

    plan: LocalPlan
    hyper: Hyper
    key: PRNGKeyArray


def fine_tune(
    how: FineTuning,
    graph: Any,
    mesh: Mesh,
    lanes: int,
    shared: PyTree,
    private: PyTree,
    members: Members,
    data: Dataset,
    backbone: Backbone,
) -> tuple[PyTree, PyTree]:
    """Shared and private variables of each client after its fine-tuning, split over devices.

    Args:
      graph: of the method's module, split by (Shared, Private).
      lanes: clients at a time on a device.
      shared: replicated; where every client starts.
      private: of the members, split over devices.
      members: with rows of their training images, split over devices.
      data: replicated.
    """
    return _fine_tune(graph, how.plan, mesh, lanes, shared, private, members, data, backbone, how.hyper, how.key)


@partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _fine_tune(graph, plan, mesh, lanes, shared, private, members, data, backbone, hyper, key):
    def on_device(shared, private, members, data, backbone, hyper, key):
        # As varying values the shared variables are each device's own: see `round.rounds_on_device`.
        client = Client(graph, plan, jax.tree.map(as_varying, shared), data, backbone, hyper)

        def alone(arguments):
            own, member = arguments
            brief, start = client.brief(member, key), jax.tree.map(as_varying, client.start(own))
            steps = plan.steps(member.counts)
            return jax.lax.fori_loop(0, steps, lambda _, state: client.step(state, brief), start).prompts

        return jax.lax.map(alone, (private, members), batch_size=lanes if lanes > 1 else None)

    specs = (SAME, SPLIT, SPLIT, SAME, SAME, SAME, SAME)
    return jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=SPLIT)(
        shared, private, members, data, backbone, hyper, key
    )

"""Rounds of the federation as one SPMD program.

Devices form one axis, `clients`. Each trains its part of the cohort by a timetable, some lanes at a time; then one
all-reduce adds up what the server needs: the weighted changes of the shared variables, the weights, the figures.
Nothing else crosses between devices, and private variables never leave theirs. Several rounds follow each other in
one dispatch, so that nothing waits for the host between them.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from fedrsclip_jax.clip.backbone import Backbone
from fedrsclip_jax.federated.aggregate import (
    Server,
    ServerPlan,
    aggregate,
    clip_update,
    needs_every_update,
    step_server,
)
from fedrsclip_jax.federated.client import AnyArray, Brief, Client, Dataset, Hyper, LocalPlan, Members, Training
from fedrsclip_jax.federated.mesh import AXIS, SAME, SPLIT, SPLIT_BY_ROUND, as_varying
from fedrsclip_jax.federated.sums import by_row, ordered_weighted_sum, weighted_sum


class RoundPlan(NamedTuple):
    """What is fixed at compile time.

    Attributes:
      graph: of the method's module, split by (Shared, Private).
      local: of a client's work.
      mesh: the devices.
      server: how changes are averaged and applied.
      cohort: clients of a round.
      ordered: whether changes are added in the order of the cohort, whatever device they come from.
      streamed: whether a device holds the images of its own clients only.
      runs: name of the mesh's axis of runs, where the program is of several runs side by side; see `together`.
    """

    graph: Any
    local: LocalPlan
    mesh: Mesh
    server: ServerPlan
    cohort: int
    ordered: bool = False
    streamed: bool = False
    runs: str | None = None


class Schedule(NamedTuple):
    """Who works when in each round of a dispatch: `cohort.Timetable`s, stacked; the second axis is split over devices.

    Attributes:
      slots: rows of the device's members that take part, -1 where there are fewer.
      places: of these clients in the cohort, likewise.
      answering: whether their update counts; if not, their private variables stay as they were.
      turns: slots that take a step, for each turn and lane; -1 is idle.
      length: turns that the round needs.
    """

    slots: Int[AnyArray, "rounds slots"]
    places: Int[AnyArray, "rounds slots"]
    answering: Bool[AnyArray, "rounds slots"]
    turns: Int[AnyArray, "rounds turns lanes"]
    length: Int[AnyArray, "rounds devices"]


class Outcome(NamedTuple):
    """What a dispatch reports of each of its rounds; rows of rounds that did not run are zero.

    Attributes:
      figures: averaged over the images of the clients whose update counted; `images` is their number, each counted as
        often as it was seen.
      sound: whether the server's variables stayed finite; after a round that was not sound none follows, and it
        leaves server and private variables as they were.
      refused: slots whose client answered with something that is not finite.
    """

    figures: dict[str, Float[Array, " rounds"]]
    sound: Bool[Array, " rounds"]
    refused: Bool[Array, "rounds slots"]


class Traffic(NamedTuple):
    """What a round reduces, counted from the arrays that are reduced."""

    params: int
    bytes: int


@partial(jax.jit, static_argnums=0, donate_argnums=(1, 2))
def run_rounds(
    plan: RoundPlan,
    server: Server,
    private: PyTree,
    members: Members,
    schedule: Schedule,
    data: Dataset,
    backbone: Backbone,
    hyper: Hyper,
    key: PRNGKeyArray,
    first: Int[Array, ""],
    rounds: Int[Array, ""],
) -> tuple[Server, PyTree, Outcome]:
    """Rounds `first`, `first + 1`, ... of a federation.

    Args:
      plan: static.
      server: replicated; donated.
      private: of the members, leading axis split over devices; donated.
      members: every client that takes part in any of the rounds, split over devices.
      schedule: with room for as many rounds as it has rows.
      data: replicated, or split if `plan.streamed`; rows of the members are rows of what lies on their device.
      backbone, hyper: replicated arguments, never constants of the program.
      key: of the run.
      rounds: how many; at most the rows of the schedule, and no other number compiles anew.

    Returns:
      The server after the last round, the private variables in the same places, and what to report.
    """
    images, report = (SPLIT_BY_ROUND, SPLIT), (SAME, SAME, SPLIT_BY_ROUND)
    mapped = jax.shard_map(
        partial(rounds_on_device, plan),
        mesh=plan.mesh,
        in_specs=(
            SAME,
            SPLIT,
            SPLIT,
            SPLIT_BY_ROUND,
            Dataset._make(images) if plan.streamed else SAME,
            *[SAME] * 5,
        ),
        out_specs=(SAME, SPLIT, Outcome._make(report)),
    )
    return mapped(server, private, members, schedule, data, backbone, hyper, key, first, rounds)


def rounds_on_device(
    plan: RoundPlan,
    server: Server,
    private: PyTree,
    members: Members,
    schedule: Schedule,
    data: Dataset,
    backbone: Backbone,
    hyper: Hyper,
    key: PRNGKeyArray,
    first: Int[Array, ""],
    rounds: Int[Array, ""],
) -> tuple[Server, PyTree, Outcome]:
    """What one device does in `run_rounds`, on its part of each argument; for `shard_map` over the axis of clients."""
    room, slots = schedule.slots.shape
    varying = partial(as_varying, axes=(AXIS, plan.runs))

    def one_round(state):
        number, server, private, alive, outcome = state
        now = jax.tree.map(lambda table: table[number], schedule)
        # Differentiating a replicated value inside shard_map would insert a hidden psum, and every client would
        # train on the sum of all devices' gradients. As varying values the shared prompts are each device's own.
        shared = jax.tree.map(varying, server.shared)
        client = Client(plan.graph, plan.local, shared, data, backbone, hyper)
        chosen = jnp.maximum(now.slots, 0)
        mine, before = jax.tree.map(lambda leaf: leaf[chosen], (members, private))
        trained = _train(plan, client, before, mine, now, jax.random.fold_in(key, first + number))

        deltas = jax.vmap(client.delta)(trained)
        finite = _finite((deltas, trained.prompts[1], trained.sums))
        counted = now.answering & finite
        refused = now.answering & ~finite
        weights = jnp.where(counted, mine.counts, 0).astype(jnp.float32)
        total = _reduce(plan, deltas, weights, trained.sums, counted, refused, now.places)
        after = step_server(plan.server, hyper.server_learning_rate, server, total.change)
        # A round in which nobody answered changes nothing, an optimiser's momentum neither.
        sound = alive & _finite((after, total.weight), axes=0) & ((total.weight > 0) | (total.refused == 0))
        server = jax.tree.map(lambda new, old: jnp.where(sound & (total.weight > 0), new, old), after, server)
        stays = counted & sound
        kept = jax.tree.map(lambda new, old: jnp.where(by_row(stays, new), new, old), trained.prompts[1], before)
        # Padding goes nowhere: its row is out of range.
        target = jnp.where(now.slots < 0, members.counts.shape[0], now.slots)
        private = jax.tree.map(lambda leaf, own: leaf.at[target].set(own, mode="drop"), private, kept)
        images = total.sums["images"]
        figures = {name: value / jnp.maximum(images, 1.0) for name, value in total.sums.items()} | {"images": images}
        outcome = Outcome(
            {name: table.at[number].set(figures[name]) for name, table in outcome.figures.items()},
            outcome.sound.at[number].set(sound),
            outcome.refused.at[number].set(refused),
        )
        return number + 1, server, private, sound, outcome

    names = jax.eval_shape(
        lambda: Client(plan.graph, plan.local, server.shared, data, backbone, hyper).start(
            jax.tree.map(lambda leaf: leaf[0], private)
        )
    ).sums
    of_run = partial(as_varying, axes=(plan.runs,))
    outcome = Outcome(
        {name: of_run(jnp.zeros(room)) for name in names},
        of_run(jnp.zeros(room, bool)),
        varying(jnp.zeros((room, slots), bool)),
    )
    state = (jnp.zeros((), jnp.int32), server, private, of_run(jnp.ones((), bool)), outcome)

    def goes_on(state):
        # Of several runs one that is no longer sound stands still, and the others go on.
        number, _, _, alive, _ = state
        return (number < rounds) & alive if plan.runs is None else number < rounds

    _, server, private, _, outcome = jax.lax.while_loop(goes_on, one_round, state)
    return server, private, outcome


def traffic(shared: PyTree) -> Traffic:
    """What one client sends up in one round: its change of the shared variables, as it is reduced."""
    leaves = jax.tree.leaves(shared)
    return Traffic(sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves))


class _Total(NamedTuple):
    """What all devices know after the all-reduce.

    Attributes:
      change: of the shared variables, averaged over the clients that count.
      weight: images of these clients.
      sums: of their figures.
      refused: clients whose update was not finite.
    """

    change: PyTree
    weight: Float[Array, ""]
    sums: dict[str, Float[Array, ""]]
    refused: Float[Array, ""]


def _train(
    plan: RoundPlan, client: Client, private: PyTree, members: Members, now: Schedule, key: PRNGKeyArray
) -> Training:
    """Trains the clients of a device by the timetable of a round."""
    briefs = jax.vmap(client.brief, in_axes=(0, None))(members, key)
    slots, lanes = now.slots.shape[0], now.turns.shape[1]
    varying = partial(as_varying, axes=(AXIS, plan.runs))
    if lanes == 1 and plan.runs is None:
        # Whoever is alone works to the end; what it carries need not wait in a table between its turns.
        def alone(arguments):
            brief, private, count = arguments
            start = jax.tree.map(varying, client.start(private))
            return jax.lax.fori_loop(0, client.plan.steps(count), lambda _, state: client.step(state, brief), start)

        return jax.lax.map(alone, (briefs, private, jnp.where(now.slots < 0, 0, members.counts)))

    def turn(number, states):
        at = now.turns[number]
        some: tuple[Training, Brief] = jax.tree.map(lambda leaf: leaf[jnp.maximum(at, 0)], (states, briefs))
        new = jax.vmap(client.step)(*some)
        target = jnp.where(at < 0, slots, at)  # an idle lane's work goes nowhere
        return jax.tree.map(lambda table, rows: table.at[target].set(rows, mode="drop"), states, new)

    states = jax.tree.map(varying, jax.vmap(client.start, axis_size=slots)(private))
    return jax.lax.fori_loop(0, now.length[0], turn, states)


def _reduce(plan: RoundPlan, deltas, weights, sums, counted, refused, places) -> _Total:
    """The one all-reduce."""
    marks = refused.astype(jnp.float32)
    if not (plan.ordered or needs_every_update(plan.server)):
        clipped = jax.vmap(partial(clip_update, plan.server), axis_size=weights.shape[0])(deltas)
        local = _Total(
            weighted_sum(clipped, weights),
            jnp.sum(weights),
            weighted_sum(sums, counted.astype(jnp.float32)),
            jnp.sum(marks),
        )
        flat, unravel = ravel_pytree(local)
        total = unravel(jax.lax.psum(flat, AXIS))
        return total._replace(change=jax.tree.map(lambda leaf: leaf / jnp.maximum(total.weight, 1.0), total.change))

    # Each client's change goes to its place in the cohort, and zeros come from everywhere else: the reduced table is
    # the same bits wherever clients trained.
    sent = jax.tree.map(lambda leaf: jnp.where(by_row(counted, leaf), leaf, 0.0), (deltas, sums))
    rows = (*sent, weights, marks)
    unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0], rows))[1]
    flat = jax.vmap(lambda *row: ravel_pytree(row)[0])(*rows)
    target = jnp.where(places < 0, plan.cohort, places)
    table = jnp.zeros((plan.cohort, flat.shape[1])).at[target].set(flat, mode="drop")
    deltas, sums, weights, marks = jax.vmap(unravel)(jax.lax.psum(table, AXIS))
    return _Total(
        aggregate(plan.server, deltas, weights),
        jnp.sum(weights),
        ordered_weighted_sum(sums, jnp.ones_like(weights)),
        jnp.sum(marks),
    )


def _finite(tree: PyTree, axes: int = 1) -> Bool[Array, "..."]:
    """Whether all of a client's values are finite, for each client; with `axes=0` whether all values are."""
    oks = [
        jnp.all(jnp.isfinite(leaf), axis=tuple(range(axes, leaf.ndim)))
        for leaf in jax.tree.leaves(tree)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    return jnp.all(jnp.stack(oks), axis=0)

"""Who takes part in a round, and when each of them works: on which device, in which lane, at which turn.

Everything here is a pure function of (seed, round), so that a resumed run draws the same clients.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

_COHORT, _DROPOUT = 1, 2  # streams of the seed


class Timetable(NamedTuple):
    """When the clients of one round work. A device takes turns; at each, every lane takes one step of one client.

    Attributes:
      members: places in the cohort of the clients of each device, padded with -1.
      turns: whose step each lane takes, as an index into the device's `members`; -1 is an idle lane. A client's
        steps never fall on the same turn, but may move from lane to lane.
      length: turns that each device needs; later rows of `turns` are padding.
      wasted: share of lane-steps without work, idle lanes and waiting devices together.
    """

    members: Int[np.ndarray, "devices slots"]
    turns: Int[np.ndarray, "devices turns lanes"]
    length: Int[np.ndarray, " devices"]
    wasted: float


def draw_cohort(seed: int, round_number: int, population: int, size: int) -> Int[np.ndarray, " size"]:
    """`size` different clients, or everyone if `size` is 0; the cost follows `size`, not `population`."""
    if size == 0 or size >= population:
        return np.arange(population)
    rng = np.random.default_rng((seed, _COHORT, round_number))
    return np.sort(rng.choice(population, size, replace=False))


def draw_answering(
    seed: int, round_number: int, ids: Int[np.ndarray, " slots"], dropout: float
) -> Bool[np.ndarray, " slots"]:
    """Which of the clients answer in this round; padding never does."""
    if dropout == 0:
        return ids >= 0
    lots = [np.random.default_rng((seed, _DROPOUT, round_number, max(int(k), 0))).random() for k in ids]
    return (ids >= 0) & (np.asarray(lots) >= dropout)


def most_turns(longest: int, slots: int, lanes: int) -> int:
    """Turns that suffice for any `slots` clients of at most `longest` steps each."""
    return max(longest, -(-longest * slots // lanes))


def lay_out(steps: Int[np.ndarray, " cohort"], devices: int, lanes: int, turns: int | None = None) -> Timetable:
    """The shortest timetable for clients of so many steps.

    Clients go to devices one by one, the longest first, to the device with the least work and room left. On a
    device the steps of its clients stand in one row which is cut into lanes of equal length (McNaughton 1959): no
    lane waits unless a single client is longer than the others together fill.

    Args:
      turns: rows of the table, so that all rounds have one shape; by default as many as are needed.
    """
    slots = -(-len(steps) // devices)
    members = np.full((devices, slots), -1, np.int32)
    work, filled = np.zeros(devices, np.int64), np.zeros(devices, int)
    if devices == 1:
        members[0] = np.arange(len(steps))
    else:
        for client in np.argsort(-steps, kind="stable"):
            free = np.flatnonzero(filled < slots)
            device = free[np.argmin(work[free])]
            members[device, filled[device]] = client
            work[device] += steps[client]
            filled[device] += 1
    rows, length = [], np.zeros(devices, np.int32)
    for device, own in enumerate(members):
        lengths = np.where(own >= 0, steps[own], 0)
        length[device] = max(lengths.max(initial=0), -(-lengths.sum() // lanes))
        row = np.full(length[device] * lanes, -1, np.int32)
        row[: lengths.sum()] = np.repeat(np.arange(slots, dtype=np.int32), lengths)
        rows.append(row.reshape(lanes, length[device]).T)
    table = np.full((devices, int(length.max()) if turns is None else turns, lanes), -1, np.int32)
    for device, row in enumerate(rows):
        table[device, : len(row)] = row
    spent = devices * lanes * int(length.max())
    return Timetable(members, table, length, float(1 - steps.sum() / spent) if spent else 0.0)

"""Who takes part in a round, and how these clients are laid out over devices and lanes.

Everything here is a pure function of (seed, round), so that a resumed run draws the same clients.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

_COHORT, _DROPOUT = 1, 2  # streams of the seed


class Layout(NamedTuple):
    """Clients in the order of devices, of chunks in a device, of lanes in a chunk.

    Attributes:
      ids: padded with -1 to devices x chunks x lanes.
      wasted: share of lane-steps that do no work: lanes that wait for the longest of their chunk, devices
        that wait for the busiest.
    """

    ids: Int[np.ndarray, " slots"]
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


def lay_out(ids: Int[np.ndarray, " cohort"], steps: Int[np.ndarray, " cohort"], devices: int, lanes: int) -> Layout:
    """Clients of like length share a chunk; chunks go to the device with the least work so far."""
    order = np.argsort(-steps, kind="stable")
    chunks = -(-len(ids) // lanes)
    per_device = -(-chunks // devices)
    slots = np.full((devices, per_device, lanes), -1, ids.dtype)
    work = np.zeros(devices)
    filled = np.zeros(devices, int)
    for start in range(0, len(ids), lanes):
        chosen = order[start : start + lanes]
        free = np.flatnonzero(filled < per_device)
        device = free[np.argmin(work[free])]
        slots[device, filled[device], : len(chosen)] = ids[chosen]
        work[device] += steps[chosen].max()
        filled[device] += 1
    spent = devices * lanes * work.max()
    return Layout(slots.reshape(-1), float(1 - steps.sum() / spent) if spent else 0.0)

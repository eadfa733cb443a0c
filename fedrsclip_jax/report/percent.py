"""Shares as people read them: in percent, alone or with their spread over seeds; and seeds without any."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def percent(share: float | None) -> str:
    """With one digit behind the point; `-` where there is none."""
    return "-" if share is None else f"{100 * share:.1f}"


def percents(shares: Sequence[float] | None, sign: bool = False) -> str:
    """Mean ± standard deviation of the sample; the mean alone of a single one, and `-` of none.

    Args:
      sign: whether the mean has a plus, as differences do.
    """
    if shares is None or not len(shares):
        return "-"
    mean = f"{100 * np.mean(shares):{'+' if sign else ''}.1f}"
    return mean if len(shares) == 1 else f"{mean} ± {100 * np.std(shares, ddof=1):.1f}"


def diverged_with(row: Mapping[str, Any]) -> str:
    """Which seeds of a row of a comparison diverged; empty where none did."""
    seeds = row.get("diverged") or ()  # a comparison of an older version has no such key
    return f"diverged: seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}" if seeds else ""

"""Which trials are learnt from where learning from all would take too long.

What matters is where the best ones are, and where the space is known to be worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

from optimizer.measurement.trial_record import TrialRecord

_T = TypeVar("_T")


def informative(ranked: Sequence[_T], most: int) -> Sequence[_T]:
    """Return at most `most` trials: the best half of that number, and others spread over the rest.

    Args:
        ranked: the best first.
    """
    if len(ranked) <= most:
        return ranked
    best, rest = ranked[: most // 2], ranked[most // 2 :]
    return [*best, *rest[:: math.ceil(len(rest) / (most - len(best)))]]


def told_or_worst(record: TrialRecord) -> float:
    """Return what trials are ranked by: the told value, infinity for one that has none."""
    return math.inf if record.told_value is None else record.told_value

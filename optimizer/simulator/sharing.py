"""How much slower executions were because all models together needed more cores than there are."""

from __future__ import annotations

import math
from dataclasses import dataclass

CORES_RATIOS = (0.75, 1.0, 1.5, 2.5, math.inf)
"""Candidates for the cores that executions share, relative to the machine's."""

_LOG_RATIO_SD = 0.5
_LOG_RATIO_OF_NONE = math.log(4.0)
"""Standard deviation of the logarithm of that ratio, and the value that stands for no sharing."""


@dataclass(frozen=True)
class CoresInUse:
    """A state of the machine while a model executes.

    Attributes:
        own: cores that the executions of the model use.
        total: cores that all executions use.
        probability: share of the time.
    """

    own: float
    total: float
    probability: float


def log_prior(ratio: float) -> float:
    """Return the logarithm of a candidate's prior probability, but for a constant."""
    log_ratio = math.log(ratio) if math.isfinite(ratio) else _LOG_RATIO_OF_NONE
    return -((log_ratio / _LOG_RATIO_SD) ** 2) / 2


def log_sharing(in_use: tuple[CoresInUse, ...], cores: float) -> float:
    """Return the logarithm of the mean slowdown of a model's executions by sharing the cores.

    What the model's own instances do to each other is left out, as its times have it.
    """
    if not math.isfinite(cores) or not in_use:
        return 0.0
    slower = (
        each.probability * max(1.0, each.total / cores) / max(1.0, each.own / cores)
        for each in in_use
    )
    return math.log(sum(slower))

"""The capacity of the winner relative to its rivals, with its confidence.

Every round of the confirm phase measures each finalist once, in turn, so that the machine's drift
between rounds cancels in a ratio. The rest of the error follows from the levels' own intervals and
the disagreement between rounds together (a moderated t statistic, Smyth 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.estimates import CONFIDENCE, NORMAL_QUANTILE
from optimizer.measurement.knee import find_knee, knee_point
from optimizer.measurement.level import HIGHEST_SHARE, Measurement

PRIOR_ROUNDS = 4
"""Degrees of freedom of the levels' own intervals, in addition to those of the rounds."""

_LEAST_SD = 0.01
"""Of a log capacity: so much a machine's performance changes from one minute to the next."""


_CONTRADICTED_SD = 0.5
"""Of a log capacity where the levels contradict each other: a line through them reaches the limit
at no load, and only the certified load is known."""


@dataclass(frozen=True)
class Finalist:
    """A configuration and its measurements, one for each round of the confirm phase."""

    config: ServingConfig
    rounds: tuple[Measurement, ...]


@dataclass(frozen=True)
class CapacityClaim:
    """The winner's capacity relative to a rival's.

    Attributes:
        ratio: above 1 where the winner serves more.
        low, high: its interval at `CONFIDENCE`.
        confidence: probability that the winner serves more, 0 to 1.
    """

    rival: ServingConfig
    ratio: float
    low: float
    high: float
    confidence: float

    @property
    def apart(self) -> bool:
        """Whether the difference is significant at `CONFIDENCE`."""
        return self.low > 1 or self.high < 1


def claims(winner: Finalist, rivals: Sequence[Finalist]) -> tuple[CapacityClaim, ...]:
    """Return the winner's claim over each rival; every finalist has the same number of rounds."""
    estimates = [[log_capacity(m) for m in one.rounds] for one in (winner, *rivals)]
    logs = np.array([[log for log, _ in row] for row in estimates])
    own = np.array([[sd**2 for _, sd in row] for row in estimates]).mean(axis=1)
    residuals = logs - logs.mean(axis=1, keepdims=True) - logs.mean(axis=0) + logs.mean()
    residual_freedom = (logs.shape[0] - 1) * (logs.shape[1] - 1)
    return tuple(
        _claim(rival.config, logs[0] - logs[n], (own[0] + own[n]) / 2, residuals, residual_freedom)
        for n, rival in enumerate(rivals, start=1)
    )


def _claim(
    rival: ServingConfig,
    differences: NDArray[np.float64],
    own_variance: float,
    residuals: NDArray[np.float64],
    residual_freedom: int,
) -> CapacityClaim:
    """Return one claim from the differences of the log capacities, shape [rounds]."""
    freedom = PRIOR_ROUNDS + residual_freedom
    pooled = (PRIOR_ROUNDS * own_variance + float((residuals**2).sum())) / freedom
    # Rounds that agree by chance do not make the levels' own intervals narrower.
    error = math.sqrt(2 * max(own_variance, pooled) / len(differences))
    difference = float(differences.mean())
    half = float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2)) * error
    return CapacityClaim(
        rival=rival,
        ratio=math.exp(difference),
        low=math.exp(difference - half),
        high=math.exp(difference + half),
        confidence=float(special.stdtr(freedom, difference / error)),
    )


def log_capacity(measurement: Measurement) -> tuple[float, float]:
    """Return the log of the load factor at one round's capacity, and its standard error.

    Args:
        measurement: with a certified load.
    """
    [saturated] = [level for level in measurement.levels if level.kind == "saturation"]
    points = [knee_point(level, saturated.load_factor) for level in measurement.open_loop]
    knee = find_knee(points)
    rate, low, high = saturated.rate
    own = (high - low) / 2 / rate / NORMAL_QUANTILE
    if knee.share <= 0:
        return math.log(measurement.load_factor), math.hypot(own, _CONTRADICTED_SD)
    within_reach = knee.share < HIGHEST_SHARE
    crossing = knee.half_width / NORMAL_QUANTILE if within_reach else 0.0
    log = math.log(min(knee.share, HIGHEST_SHARE) * saturated.load_factor)
    return log, math.hypot(own, crossing, _LEAST_SD)

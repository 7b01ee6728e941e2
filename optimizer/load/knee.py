"""Where latency crosses its limit, estimated from levels near it. Pure.

A queue's latency grows as 1 / (1 - utilisation): its logarithm is close to a line over
-log(1 - utilisation), for single servers and for batches alike. The line through the measured
levels crosses the limit at the capacity; the closer a level is to the limit, the more it counts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.measurement.estimates import CONFIDENCE

NORMAL_QUANTILE = float(special.ndtri((1 + CONFIDENCE) / 2))
"""Half an interval at `CONFIDENCE`, in standard errors."""

_SLOPE = 1.0
_SLOPE_SD = 0.5
"""Belief before any pair of levels shows it: 1 in heavy traffic, less where service dominates."""

_CURVATURE = 0.45
"""Error of the line at a level, relative to how far that is from the limit (log latency)."""

_NEAR = 0.2
"""Log latency from the limit within which levels say how much a sample is worth."""


@dataclass(frozen=True)
class Point:
    """One level: the load as a share of saturation, and how far its latency is from the limit.

    Attributes:
        log_excess: log of latency / limit at the limit's percentile, of the worst stream.
        sd: standard error of `log_excess`.
        samples: requests that it is drawn from.
    """

    share: float
    log_excess: float
    sd: float
    samples: int


@dataclass(frozen=True)
class Knee:
    """Share of saturation at which the limit is reached, with its interval at `CONFIDENCE`."""

    share: float
    low: float
    high: float

    @property
    def half_width(self) -> float:
        """Of the interval, relative to the estimate."""
        return (self.high - self.low) / 2 / self.share if self.share > 0 else math.inf


def find_knee(points: Sequence[Point]) -> Knee:
    """Bayesian least squares of a line with a prior for its slope. Needs at least one point."""
    x = np.array([-math.log1p(-min(point.share, 0.999)) for point in points])
    z = np.array([point.log_excess for point in points])
    weights = 1 / (_variances(points, z) + (_CURVATURE * z) ** 2)
    centre = float((weights * x).sum() / weights.sum())
    level = float((weights * z).sum() / weights.sum())
    precision = 1 / _SLOPE_SD**2 + float((weights * (x - centre) ** 2).sum())
    pull = _SLOPE / _SLOPE_SD**2 + float((weights * (x - centre) * (z - level)).sum())
    slope = max(0.1, pull / precision)
    at = centre - level / slope
    sd = math.sqrt(1 / float(weights.sum()) + (at - centre) ** 2 / precision) / slope
    half = NORMAL_QUANTILE * sd
    return Knee(*(_share(value) for value in (at, at - half, at + half)))


def _variances(points: Sequence[Point], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Variance of every `log_excess` by its number of samples, shape [points].

    What one sample is worth is pooled over the levels, the close ones most: a level that was lucky
    shows a low latency and a low spread at once, and by its own spread it would count too much.
    """
    samples = np.array([point.samples for point in points], dtype=float)
    each = np.array([point.sd for point in points]) ** 2 * samples
    return float(np.average(each, weights=1 / (_NEAR**2 + z**2))) / samples


def _share(x: float) -> float:
    return max(0.0, -math.expm1(-x))

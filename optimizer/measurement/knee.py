"""Where latency crosses its limit: estimated from levels near it, or from service times.

A queue's latency grows as 1 / (1 - utilisation): its logarithm is close to a line over
-log(1 - utilisation), for single servers and for batches alike. The line through the measured
levels crosses the limit at the capacity; the closer a level is to the limit, the more it counts.
What chance in the arrivals did to a level's latency is taken out before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.measurement.estimates import NORMAL_QUANTILE
from optimizer.measurement.level import HIGHEST_SHARE, BatchPoint, LoadLevel, StreamLevel
from optimizer.measurement.level_checks import LEAST_OVERSHOOT, backlog_grew
from optimizer.workload.streams import Stream, Workload

_SLOPE = 1.0
_SLOPE_SD = 0.5
"""Prior of the line's slope: 1 in heavy traffic, less where service time dominates."""

_CURVATURE = 0.45
"""Error of the line at a level, relative to its distance from the limit (log latency)."""

_NEAR = 0.2
"""Distance from the limit (log latency) within which levels tell the variance of a sample."""

_BELOW_MISSED = 0.75
"""Share of a load that missed the limit at which the next is tried, in bursts."""

_LEAST_SD = 0.01
_FAILING = math.log(1.5)
"""Log latency over the limit of a level that fails by errors or backlog."""


@dataclass(frozen=True)
class Point:
    """One level: the load as a share of saturation, and how far its latency is from the limit.

    Attributes:
        log_excess: log of latency / limit at the limit's percentile, of the worst stream.
        sd: standard error of `log_excess`.
        samples: number of requests behind it.
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
        """Half width of the interval, relative to the estimate."""
        return (self.high - self.low) / 2 / self.share if self.share > 0 else math.inf


def knee_point(level: LoadLevel, saturation: float) -> Point:
    """Return the point of a level, given the load factor of saturation."""
    worst = level.worst
    log_excess = math.log1p(worst.limit_overshoot) - level.arrival_effect
    if level.errors or backlog_grew(level):
        log_excess = max(log_excess, _FAILING)
    if level.verdict == "infeasible":
        log_excess = max(log_excess, math.log1p(LEAST_OVERSHOOT))
    return Point(level.load_factor / saturation, log_excess, _log_sd(worst), worst.sent)


def _log_sd(stream: StreamLevel) -> float:
    """Return the standard error of the log latency at the limit's percentile."""
    latency = stream.latency(stream.limit_percentile)
    below = math.log(latency.value_ms / latency.low_ms) if latency.low_ms > 0 else 1.0
    above = math.log(latency.high_ms / latency.value_ms) if latency.high_ms is not None else 1.0
    return max(_LEAST_SD, (below + above) / 2 / NORMAL_QUANTILE)


def find_knee(points: Sequence[Point]) -> Knee:
    """Fit a line to at least one point, by Bayesian least squares with a prior for its slope."""
    x = np.array([-math.log1p(-min(point.share, 0.999)) for point in points])
    z = np.array([point.log_excess for point in points])
    weights = 1 / (_variances(points, z) + (_CURVATURE * z) ** 2)
    centre = float((weights * x).sum() / weights.sum())
    level = float((weights * z).sum() / weights.sum())
    precision = 1 / _SLOPE_SD**2 + float((weights * (x - centre) ** 2).sum())
    pull = _SLOPE / _SLOPE_SD**2 + float((weights * (x - centre) * (z - level)).sum())
    slope = max(0.1, pull / precision)
    crossing = centre - level / slope
    sd = math.sqrt(1 / float(weights.sum()) + (crossing - centre) ** 2 / precision) / slope
    half = NORMAL_QUANTILE * sd
    shares = (max(0.0, -math.expm1(-x)) for x in (crossing, crossing - half, crossing + half))
    return Knee(*shares)


def bracket_knee(points: Sequence[Point]) -> Knee:
    """Return the middle between the highest load that met the limit and the next that missed it.

    Where requests come in bursts, latency rises with the height of the bursts over the capacity,
    far from saturation, and no line tells it.
    """
    met = [point.share for point in points if point.log_excess <= 0]
    missed = [point.share for point in points if point.log_excess > 0]
    if not met:
        return Knee(_BELOW_MISSED * min(missed), 0.0, min(missed))
    low = max(met)
    high = max(low, min((share for share in missed if share > low), default=HIGHEST_SHARE))
    return Knee(math.sqrt(low * high), low, high)


def _variances(points: Sequence[Point], z: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the variance of every `log_excess` by its number of samples, shape [points].

    The variance of one sample is pooled over the levels, with more weight for close ones: a lucky
    level shows a low latency and a low spread at once, and by its own spread it would count too
    much.
    """
    samples = np.array([point.samples for point in points], dtype=float)
    each = np.array([point.sd for point in points]) ** 2 * samples
    return float(np.average(each, weights=1 / (_NEAR**2 + z**2))) / samples


def served_alone(saturated: LoadLevel, stream: Stream) -> bool:
    """Return whether no request was merged with another under saturation."""
    sizes = [[each.batch_size for each in batches] for batches in _batches(saturated, stream)]
    return sizes == [[stream.batch_size]]


def _batches(level: LoadLevel, stream: Stream) -> list[tuple[BatchPoint, ...]]:
    return [split.batches for split in level.server if split.model == stream.target]


def share_by_service_time(saturated: LoadLevel, workload: Workload) -> float:
    """Return the share of saturation where waiting should reach the tightest stream's limit.

    In heavy traffic the wait for servers of constant service time, `rate` per second together, is
    above w with probability exp(-2 w rate (1 - share) / share) (Kingman 1962). Where requests were
    merged, their service time depends on the load, and `HIGHEST_SHARE` is returned.
    """
    shares = [HIGHEST_SHARE]
    for stream in workload.streams:
        if not served_alone(saturated, stream):
            continue
        [[executed]] = _batches(saturated, stream)
        room = (stream.limit.latency_ms - executed.compute_ms) / 1e3 * saturated.achieved_per_second
        late = -math.log1p(-stream.limit.percentile / 100)
        shares.append(room / (room + late / 2) if room > 0 else 0.0)
    return min(shares)

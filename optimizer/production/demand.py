"""The demand that counters show: its rate over time, its peak, and how uneven arrivals are.

Triton counts requests when they are answered. Over intervals that are long against the latency,
these counts are those of the arrivals.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.measurement.counters import CounterInterval, by_replica, requests_per_second
from optimizer.measurement.estimates import NORMAL_QUANTILE
from optimizer.workload.arrivals import ArrivalName, ArrivalTrace

_PEAK_SHARE, _LONGEST_PEAK_SECONDS = 0.1, 3600.0
"""The peak is the busiest tenth of the time, at most an hour."""

_REGULAR = 0.5
"""Dispersion below which arrivals are closer to regular ones than to independent ones."""

_BLOCK = 10
"""Windows within which counts are compared: a rate that changes slowly is no unevenness."""

_BATCHES = 10
"""Mean batches in a window: requests of a batch are answered, and counted, together."""

_LEAST_WINDOWS = 20
_MOST_REQUESTS = 30_000
"""Of a trace: as many as are simulated."""


@dataclass(frozen=True)
class ObservedDemand:
    """Requests per second to all replicas together.

    Attributes:
        mean_low, mean_high: interval of the mean, from its unevenness.
        peak_per_second: in the busiest window of `peak_seconds`.
        dispersion: variance of a replica's counts over their mean, 1 for independent arrivals (a
            Poisson process); None where there are too few intervals.
        arrivals: the process that the dispersion is closest to; a trace where arrivals are more
            uneven than independent ones.
        request_size: mean inferences of a request.
    """

    seconds: float
    mean_per_second: float
    mean_low: float
    mean_high: float
    peak_per_second: float
    peak_seconds: float
    dispersion: float | None
    arrivals: ArrivalName | ArrivalTrace
    request_size: float

    @property
    def arrivals_text(self) -> str:
        """Describe the arrivals."""
        if isinstance(self.arrivals, ArrivalTrace):
            return "uneven"
        return {"poisson": "independent (Poisson)", "constant": "regular"}[self.arrivals]


def observed_demand(intervals: Sequence[CounterInterval]) -> ObservedDemand:
    """Return the demand on all replicas, at least one of which served requests."""
    replicas = [*by_replica(intervals)]
    seconds = max(each.end_seconds for each in intervals) - min(
        each.begin_seconds for each in intervals
    )
    mean = sum(requests_per_second(own) for own in replicas)
    dispersion = _dispersion(replicas)
    requests = sum(each.split.requests for each in intervals)
    error = NORMAL_QUANTILE * mean * math.sqrt(max(dispersion or 1.0, 0.0) / requests)
    peak_seconds = min(_PEAK_SHARE * seconds, _LONGEST_PEAK_SECONDS)
    return ObservedDemand(
        seconds=seconds,
        mean_per_second=mean,
        mean_low=max(0.0, mean - error),
        mean_high=mean + error,
        peak_per_second=_peak(replicas, mean, peak_seconds),
        peak_seconds=peak_seconds,
        dispersion=dispersion,
        arrivals=_arrivals(replicas, dispersion),
        request_size=sum(each.split.inferences for each in intervals) / requests,
    )


def _peak(
    replicas: Sequence[Sequence[CounterInterval]], mean: float, window_seconds: float
) -> float:
    """Return the highest rate of all replicas together in windows of equal length."""
    ends = [each.end_seconds for own in replicas for each in own]
    begin = min(each.begin_seconds for own in replicas for each in own)
    edges = np.arange(begin, max(ends) + 1e-9, window_seconds)
    if len(edges) < 2:
        return mean
    total = np.zeros(len(edges) - 1)
    for own in replicas:
        middle = np.array([each.begin_seconds + each.seconds / 2 for each in own])
        window = np.searchsorted(edges, middle, "right") - 1
        inside = (window >= 0) & (window < len(total))
        requests, covered = np.zeros(len(total)), np.zeros(len(total))
        counts, lengths = _counts(own), np.array([each.seconds for each in own])
        np.add.at(requests, window[inside], counts[inside])
        np.add.at(covered, window[inside], lengths[inside])
        # Where a replica was not read for most of a window, its mean stands in.
        read = covered > window_seconds / 2
        total += np.where(read, requests / np.maximum(covered, 1e-9), requests_per_second(own))
    return max(mean, float(total.max()))


def _counts(intervals: Sequence[CounterInterval]) -> NDArray[np.float64]:
    return np.array([each.split.requests for each in intervals], dtype=np.float64)


def _dispersion(replicas: Sequence[Sequence[CounterInterval]]) -> float | None:
    """Return the index of dispersion of counts, pooled over replicas."""
    squares, freedom = 0.0, 0.0
    for own in replicas:
        counts = _counts(own)
        lengths = np.array([each.seconds for each in own])
        usual = lengths < 1.5 * np.median(lengths)
        counts = counts[usual]
        executions = sum(each.split.executions for each in own)
        mean_batch = sum(each.split.requests for each in own) / max(executions, 1)
        width = max(1, math.ceil(_BATCHES * mean_batch / max(counts.mean(), 1e-9)))
        width = min(width, max(1, len(counts) // _LEAST_WINDOWS))
        windows = counts[: len(counts) // width * width].reshape(-1, width).sum(axis=1)
        for block in np.array_split(windows, max(1, len(windows) // _BLOCK)):
            if len(block) > 1 and block.mean() > 0:
                squares += float(((block - block.mean()) ** 2).sum() / block.mean())
                freedom += len(block) - 1
    return squares / freedom if freedom >= _LEAST_WINDOWS / 2 else None


def _arrivals(
    replicas: Sequence[Sequence[CounterInterval]], dispersion: float | None
) -> ArrivalName | ArrivalTrace:
    if dispersion is None:
        return "poisson"
    if dispersion < _REGULAR:
        return "constant"
    windows = sum(len(own) for own in replicas)
    if dispersion <= 1 + max(0.3, 3 * math.sqrt(2 / windows)):
        return "poisson"
    busiest = max(replicas, key=lambda own: sum(each.split.requests for each in own))
    return trace_of(recent(busiest), dispersion)


def recent(intervals: Sequence[CounterInterval]) -> Sequence[CounterInterval]:
    """Return the last intervals of a replica that have as many requests as are simulated."""
    requests = 0
    for n in range(len(intervals) - 1, -1, -1):
        requests += intervals[n].split.requests
        if requests > _MOST_REQUESTS:
            return intervals[n:]
    return intervals


def trace_of(intervals: Sequence[CounterInterval], dispersion: float | None) -> ArrivalTrace:
    """Return arrivals as counted in each interval; within it they are independent, or regular."""
    rng = np.random.default_rng(0)
    regular = dispersion is not None and dispersion < _REGULAR
    times, begin = [], 0.0
    for each in intervals:
        count = each.split.requests
        within = (np.arange(count) + 0.5) / max(count, 1) if regular else rng.random(count)
        times.append(begin + np.sort(within) * each.seconds)
        begin += each.seconds
    at_seconds = np.concatenate(times)
    digest = hashlib.sha256(at_seconds.tobytes()).hexdigest()
    return ArrivalTrace(digest, tuple(at_seconds.tolist()), begin)

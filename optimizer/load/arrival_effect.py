"""By how much the arrivals that a level happened to draw raised its latency.

A few seconds of Poisson arrivals hold more or fewer bursts than usual, and a queue's latency
follows them. The same arrivals are put through a reference queue that serves one request after the
other at the server's saturation rate. How its waiting time compares with what such arrivals cause
on average is a control variate (Lavenberg and Welch 1981): it needs no model of the server, and it
removes most of the noise of a short level. Where requests are merged into batches, latency follows
bursts much less, and the correction would add noise.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_REGRESSION = 0.8
"""Change of a server's log waiting time with that of the reference queue: somewhat less than 1,
because several instances even bursts out."""

_LEAST_WAIT = 0.2
"""Waiting times below this many service times count as this: such a queue is almost empty."""

_NO_WAIT_PERCENTILE = 5
_HIGHEST_UTILISATION = 0.97
_REPLICATIONS = 100
_STEPS_PER_DOUBLING = 3
"""Averages are kept by utilisation and by number of requests, in steps that change them little."""


def arrival_effect(
    due_seconds: NDArray[np.float64],
    counted: NDArray[np.bool_],
    latencies_ms: NDArray[np.float64],
    percentile: float,
    saturation_per_second: float,
    per_second: float,
) -> float:
    """Return the log of the ratio of a level's latency to that under average arrivals.

    Args:
        due_seconds: all requests of the level, ascending, shape [n].
        counted: which of them were due in the measured window, shape [n].
        latencies_ms: of the requests that count, shape [number of them].
        percentile: of the latency limit.
        per_second: request rate of the level.
    """
    busy = due_seconds * saturation_per_second
    utilisation = min(per_second / saturation_per_second, _HIGHEST_UTILISATION)
    number = _rounded(int(counted.sum())), _rounded(int((~counted).sum()))
    average = _average_log_wait(round(utilisation, 2), percentile, *number)
    excess = _REGRESSION * (_log_wait(busy, counted, percentile) - average)
    latency, no_wait = np.percentile(latencies_ms, [percentile, _NO_WAIT_PERCENTILE])
    return -math.log1p((1 - no_wait / latency) * math.expm1(-excess))


def _log_wait(due: NDArray[np.float64], counted: NDArray[np.bool_], percentile: float) -> float:
    """Return the log of a percentile of the waits in the reference queue, in service times."""
    ahead = np.arange(len(due)) - due
    waits = (ahead - np.minimum.accumulate(ahead))[counted]
    return math.log(max(float(np.percentile(waits, percentile)), _LEAST_WAIT))


@lru_cache(maxsize=4096)
def _average_log_wait(utilisation: float, percentile: float, counted: int, before: int) -> float:
    """Return the mean of `_log_wait` over Poisson arrivals, of which the first do not count."""
    rng = np.random.default_rng(0)
    number = before + counted
    counts = np.arange(number) >= before
    mean_gap = 1 / max(utilisation, 0.01)
    waits = []
    for _ in range(_REPLICATIONS):  # one after the other: long levels have 100,000s of requests
        due = np.cumsum(rng.exponential(mean_gap, number))
        waits.append(_log_wait(due, counts, percentile))
    return float(np.mean(waits))


def _rounded(number: int) -> int:
    """Return a number to the nearest of `_STEPS_PER_DOUBLING` steps between powers of two."""
    step = round(math.log2(max(number, 1)) * _STEPS_PER_DOUBLING)
    return round(2 ** (step / _STEPS_PER_DOUBLING))

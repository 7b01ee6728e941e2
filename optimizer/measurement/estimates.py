"""Percentiles and rates with confidence intervals."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

CONFIDENCE = 0.95
"""Confidence of every interval that is reported."""

NORMAL_QUANTILE = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
"""Half width of an interval at `CONFIDENCE`, in standard errors."""


@dataclass(frozen=True, slots=True)
class Percentile:
    """A percentile of latency with its distribution-free confidence interval.

    Attributes:
        percentile: 0 to 100.
        low_ms, high_ms: order-statistic interval at `CONFIDENCE`; 0 or None where there are too few
            samples to bound that end.
        effective_samples: independent samples that the correlated ones are worth.
    """

    percentile: float
    value_ms: float
    low_ms: float
    high_ms: float | None
    samples: int
    effective_samples: float


def percentile_with_interval(
    latencies_ms: NDArray[np.float64], percentile: float, inflation: float = 1.0
) -> Percentile:
    """Return a percentile of `latencies_ms` (shape [n], n >= 1) with its interval.

    The estimate's rank is `percentile` x (m + 1) / m of m = n / `inflation` effective samples (the
    Weibull position): few effective samples show too little of the long tail of latencies, so the
    nearest rank is too low on average.

    The interval's ends are the order statistics whose ranks are binomial quantiles (Hahn and
    Meeker, Statistical Intervals, section 5.2), for n / `inflation` samples where they depend on
    each other.

    Raises:
        ValueError: when there is no sample.
    """
    count = len(latencies_ms)
    if count == 0:
        raise ValueError("a percentile needs at least one sample, got 0")
    ordered = np.sort(latencies_ms)
    share = percentile / 100
    effective = max(1, int(count / inflation))
    # 0.55 * 100 is above 55 in floats.
    rank = min(count, max(1, math.ceil(share * count * (1 + 1 / effective) - 1e-9)))
    tail = (1 - CONFIDENCE) / 2
    low = int(_binomial_quantile(tail, effective, share) * count / effective)
    above = _binomial_quantile(1 - tail, effective, share) + 1
    high = int(np.ceil(above * count / effective))
    return Percentile(
        percentile=percentile,
        value_ms=float(ordered[rank - 1]),
        low_ms=float(ordered[low - 1]) if low >= 1 else 0.0,
        high_ms=float(ordered[high - 1]) if high <= count else None,
        samples=count,
        effective_samples=count / inflation,
    )


def _binomial_quantile(probability: float, count: int, share: float) -> int:
    """Return the least k with P(X <= k) >= `probability`; scipy takes long to import."""
    from scipy import special

    return bisect_left(
        range(count), probability, key=lambda k: float(special.bdtr(k, count, share))
    )


def rate_interval(counts: Sequence[int], seconds_each: float) -> tuple[float, float, float]:
    """Return the mean rate per second and its interval from counts of equal time slices.

    Raises:
        ValueError: with fewer than two slices.
    """
    from scipy import special

    if len(counts) < 2:
        raise ValueError(f"an interval needs at least 2 slices, got {len(counts)}")
    rates = np.asarray(counts, dtype=float) / seconds_each
    mean = float(rates.mean())
    error = rates.std(ddof=1) / math.sqrt(len(rates))
    half = float(special.stdtrit(len(rates) - 1, (1 + CONFIDENCE) / 2) * error)
    return mean, max(0.0, mean - half), mean + half

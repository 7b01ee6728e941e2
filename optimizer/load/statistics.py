"""Statistics of one load level: end of warm-up, effective samples, sequential test.

Latencies of a queue are not independent: a long wait is followed by long waits. Everything here
counts effective samples: n divided by the variance inflation, which is estimated by batch means.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.measurement.level import LevelVerdict

ERROR_RATE = 0.025
"""Nominal probability that a verdict is wrong, for each of the two."""

_BATCHES = 20
_BOUND_BATCHES = 8
_LEAST_PER_BATCH = 2
_PRIOR = (0.5, 0.5)
"""Prior of the late fraction (Jeffreys), truncated at the hypothesis that is tested."""

_MSER_BATCH = 5
_SIGNIFICANT = 3.0


def warmup_length(values: NDArray[np.float64]) -> int:
    """Return how many of `values` (shape [n], in time order) are warm-up, by MSER-5.

    The cut minimises the standard error of the rest (White, Cobb and Spratt 2000) and takes at most
    half: where it would take more, warm-up has not ended. There is no cut where both parts differ
    by no more than noise: MSER alone prefers the quieter part of a correlated series, whose
    percentiles are too low.
    """
    count = len(values) // _MSER_BATCH
    if count < 4:
        return 0
    means = values[: count * _MSER_BATCH].reshape(count, _MSER_BATCH).mean(axis=1)
    left = np.arange(count, 0, -1)
    sums, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    marginal = (squares - sums**2 / left) / left**2
    cut = int(np.argmin(marginal[: count // 2 + 1])) * _MSER_BATCH
    return cut if cut and _differs(values[:cut], values[cut:]) else 0


def _differs(first: NDArray[np.float64], rest: NDArray[np.float64]) -> bool:
    """Return whether the means of two parts differ by more than `_SIGNIFICANT` sigma."""
    variance = variance_inflation(rest) * (1 / len(first) + 1 / len(rest))
    difference = abs(float(first.mean()) - float(rest.mean()))
    return difference > _SIGNIFICANT * float(rest.std() * np.sqrt(variance))


def warmup_is_over(values: NDArray[np.float64]) -> bool:
    """Return whether warm-up ends within the first half of `values`, shape [n], by MSER-5."""
    half = len(values) // _MSER_BATCH // 2 * _MSER_BATCH
    return warmup_length(values) < max(half, 1)


def variance_inflation(values: NDArray[np.float64]) -> float:
    """Return how many correlated samples are worth one independent one; at least 1.

    Uses batch means over `_BATCHES` batches of `values` (shape [n], in time order).
    """
    return max(1.0, _batch_means(values, _BATCHES))


def inflation_bound(values: NDArray[np.float64]) -> float:
    """Return the 99 % upper bound of `variance_inflation`, for tests that may stop early.

    Uses fewer, longer batches: waits of a busy queue depend on each other for seconds.
    """
    spare = _BOUND_BATCHES - 1
    worst = spare / float(special.chdtri(spare, 0.99))
    return max(1.0, worst * _batch_means(values, _BOUND_BATCHES))


def _batch_means(values: NDArray[np.float64], batches: int) -> float:
    """Return the variance of batch means relative to independent samples; 0 if unknown."""
    size = len(values) // batches
    spread = float(values.var()) if len(values) else 0.0
    if size < _LEAST_PER_BATCH or spread == 0:
        return 0.0
    means = values[-size * batches :].reshape(batches, size).mean(axis=1)
    return size * float(means.var(ddof=1)) / spread


def late_verdict(late: NDArray[np.bool_], inflation: float, allowed: float) -> LevelVerdict | None:
    """Test whether the fraction of late requests is above or below `allowed`.

    One mixture likelihood ratio against "at least `allowed`" and one against "at most `allowed`",
    each with error `ERROR_RATE` however often it is evaluated (Ville's inequality; Robbins 1970),
    for independent samples; `inflation` corrects for their correlation.

    Args:
        late: shape [n], whether each request missed the limit.
        allowed: largest fraction that meets the limit, 0 to 1.

    Returns:
        "feasible" or "infeasible", None while neither is proven.
    """
    if len(late) == 0:
        return None
    missed = float(late.sum()) / inflation
    met = len(late) / inflation - missed
    bound = -np.log(ERROR_RATE)
    if _log_evidence(missed, met, allowed) > bound:
        return "feasible"
    if _log_evidence(met, missed, 1 - allowed) > bound:
        return "infeasible"
    return None


def _log_evidence(hits: float, misses: float, fraction: float) -> float:
    """Return the log likelihood ratio of "fewer than `fraction` hit" to "exactly `fraction`"."""
    a, b = _PRIOR
    alternative = _log_beta_below(hits + a, misses + b, fraction)
    return float(
        alternative
        - _log_beta_below(a, b, fraction)
        - special.xlogy(hits, fraction)
        - special.xlog1py(misses, -fraction)
    )


def _log_beta_below(a: float, b: float, upper: float) -> float:
    """Return the log of the integral of p^(a-1) (1-p)^(b-1) from 0 to `upper`."""
    share = special.betainc(a, b, upper)
    return float(special.betaln(a, b) + np.log(max(share, np.finfo(float).tiny)))

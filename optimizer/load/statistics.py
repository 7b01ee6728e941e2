"""Statistics of one load level: where warm-up ends, how much samples are worth, what they prove.

Latencies of a queue are not independent: a long wait is followed by long waits. Everything here
counts effective samples, n divided by the variance inflation that batch means show. Pure.
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
"""Of the late fraction (Jeffreys), cut off at the hypothesis that it is evidence against."""

_MSER_BATCH = 5
_SIGNIFICANT = 3.0


def warmup_length(values: NDArray[np.float64]) -> int:
    """How many of `values` (shape [n], in time order) the warm-up takes, by MSER-5.

    The cut that makes the standard error of the rest smallest, see White, Cobb and Spratt (2000).
    At most half: a series that wants more cut than that has not settled. No cut where what is left
    differs by no more than its noise: MSER alone prefers the quieter part of a correlated series,
    and a percentile of that is too low.
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
    """Whether the means of two parts of a series differ by more than `_SIGNIFICANT` sigma."""
    worth = variance_inflation(rest) * (1 / len(first) + 1 / len(rest))
    difference = abs(float(first.mean()) - float(rest.mean()))
    return difference > _SIGNIFICANT * float(rest.std() * np.sqrt(worth))


def warmup_ended(values: NDArray[np.float64]) -> bool:
    """Whether MSER-5 finds a warm-up that ends within the first half of `values`, shape [n]."""
    half = len(values) // _MSER_BATCH // 2 * _MSER_BATCH
    return warmup_length(values) < max(half, 1)


def variance_inflation(values: NDArray[np.float64]) -> float:
    """How many correlated samples are worth one independent one; at least 1.

    By batch means over `_BATCHES` batches of `values` (shape [n], in time order).
    """
    return max(1.0, _batch_means(values, _BATCHES))


def inflation_bound(values: NDArray[np.float64]) -> float:
    """Upper bound of `variance_inflation` at 99 %, for what must not be concluded too early.

    From fewer batches, which are longer: waits of a busy queue depend on each other for seconds.
    """
    spare = _BOUND_BATCHES - 1
    worst = spare / float(special.chdtri(spare, 0.99))
    return max(1.0, worst * _batch_means(values, _BOUND_BATCHES))


def _batch_means(values: NDArray[np.float64], batches: int) -> float:
    """Variance of the batches' means relative to that of independent samples; 0 if unknown."""
    size = len(values) // batches
    spread = float(values.var()) if len(values) else 0.0
    if size < _LEAST_PER_BATCH or spread == 0:
        return 0.0
    means = values[-size * batches :].reshape(batches, size).mean(axis=1)
    return size * float(means.var(ddof=1)) / spread


def late_verdict(late: NDArray[np.bool_], inflation: float, allowed: float) -> LevelVerdict | None:
    """What the requests seen so far prove about the fraction that is late.

    A mixture likelihood ratio against "at least `allowed`" and one against "at most `allowed`",
    each with error `ERROR_RATE` however often it is asked (Ville's inequality; Robbins 1970), for
    independent samples; `inflation` makes up for their correlation.

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
    """Log likelihood ratio of "less than `fraction` are hits" to "exactly `fraction` are"."""
    a, b = _PRIOR
    alternative = _log_beta_below(hits + a, misses + b, fraction)
    return float(
        alternative
        - _log_beta_below(a, b, fraction)
        - special.xlogy(hits, fraction)
        - special.xlog1py(misses, -fraction)
    )


def _log_beta_below(a: float, b: float, upper: float) -> float:
    """Log of the integral of p^(a-1) (1-p)^(b-1) from 0 to `upper`."""
    share = special.betainc(a, b, upper)
    return float(special.betaln(a, b) + np.log(max(share, np.finfo(float).tiny)))

"""What one fit expects of the points that may be proposed, while more and more of them run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.search.surrogate.expected_improvement import improvement
from optimizer.search.surrogate.pending_residuals import PendingResiduals
from optimizer.search.surrogate.posterior import Posterior
from optimizer.search.surrogate.residuals import Rows
from optimizer.study.search_status import ExpectedCost

Array = NDArray[np.float64]

WORTHWHILE = 0.01
"""Share of the incumbent's cost that a trial must be expected to save."""

_OPTIMISM = 2.0
"""Standard deviations below the mean, for the lowest plausible cost."""

_NORMAL_95 = 1.96

_LIKELY = 0.5
"""Probability of meeting the limits above which a running point may be the next incumbent."""


def lowest_plausible(log_mean: Array, log_sd: Array) -> Array:
    """Return the logarithm of the lowest plausible cost of each point."""
    return log_mean - _OPTIMISM * log_sd


@dataclass(frozen=True)
class Assessment:
    """The posterior of the points that are neither measured nor ruled out.

    Attributes:
        rows: of these points; every array has one element for each.
        log_mean, log_sd: of the logarithm of the cost.
        feasible: probability that the limits are met.
        log_best: logarithm of the incumbent's cost, None while there is none.
        gain: expected share of the incumbent's cost that is saved; 0 while there is none.
        seconds: expected duration of the trial.
    """

    posterior: Posterior
    rows: Rows
    log_mean: Array
    log_sd: Array
    feasible: Array
    log_best: float | None
    gain: Array
    seconds: Array

    @property
    def optimistic(self) -> Array:
        """Logarithm of the lowest plausible cost of each point."""
        return lowest_plausible(self.log_mean, self.log_sd)

    @property
    def best(self) -> int:
        """Index of the point to measure next."""
        if self.log_best is None:
            cheapness = np.exp(self.log_mean.min() - self.log_mean)
            return int(np.argmax(self.feasible * cheapness))
        if self.gain.max() < WORTHWHILE:
            # The last trials test the model: they measure where it may be wrong.
            return int(np.argmin(np.where(self.feasible > 0.5, self.optimistic, np.inf)))
        return int(np.argmax(self.gain / self.seconds))

    @property
    def why_best(self) -> str:
        """Reason for measuring that point next."""
        if self.log_best is None:
            return "the cheapest configuration that is likely to meet the limits"
        if self.gain.max() < WORTHWHILE:
            return (
                f"no point is expected to save {WORTHWHILE:.0%}; this has the lowest plausible cost"
            )
        return "the largest expected saving per second"

    def expectation(self, at: int, why: str) -> ExpectedCost:
        """Return the expected cost of one of the points."""
        mean, half = float(self.log_mean[at]), _NORMAL_95 * float(self.log_sd[at])
        return ExpectedCost(
            why,
            usd_per_million=math.exp(mean),
            low=math.exp(mean - half),
            high=math.exp(mean + half),
            feasible=float(self.feasible[at]),
            saving=float(self.gain[at]) if self.log_best is not None else None,
            seconds=float(self.seconds[at]),
        )


class Candidates:
    """Points that may be proposed, by one fit; each that runs counts with its expected result.

    So the next proposal is the best beside those that run: the greedy choice of a batch.

    Args:
        rows: of the points, and of those that run.
        available: which of them may be proposed, [rows].
        residuals: of the same rows.
        seconds: expected duration of a trial of each, [rows].
        log_best: logarithm of the incumbent's cost, None while there is none.
    """

    def __init__(
        self,
        posterior: Posterior,
        rows: Rows,
        available: NDArray[np.bool_],
        residuals: PendingResiduals,
        seconds: Array,
        log_best: float | None,
    ) -> None:
        self._posterior = posterior
        self._rows = rows
        self._index = {row: at for at, row in enumerate(rows.tolist())}
        self._available = available.copy()
        self._residuals = residuals
        self._log_mean = posterior.expected.log_cost[rows] + residuals.mixture().moments[0]
        self._feasible = posterior.feasible(rows)
        self._seconds = seconds
        self._log_best = log_best
        self._running = set[int]()

    def may_run(self, rows: Collection[int]) -> bool:
        """Return whether these rows are among the points, with all that run so far."""
        return self._running.issubset(rows) and all(row in self._index for row in rows)

    def add_running(self, rows: Iterable[int]) -> None:
        """Count points as measured with the expected result; those that do already are left out."""
        new = [row for row in dict.fromkeys(rows) if row not in self._running]
        if not new:
            return
        self._running.update(new)
        at = np.array([self._index[row] for row in new], dtype=np.int64)
        self._residuals.add(at)
        self._available[at] = False
        likely = self._log_mean[at[self._feasible[at] > _LIKELY]].tolist()
        known = [self._log_best] if self._log_best is not None else []
        self._log_best = min([*known, *likely], default=None)

    @property
    def assessment(self) -> Assessment:
        """The points that are not running."""
        at = np.flatnonzero(self._available)
        rows, mixture = self._rows[at], self._residuals.mixture(at)
        _, log_sd = mixture.moments
        feasible, log_best, gain = self._feasible[at], self._log_best, np.zeros(len(at))
        if log_best is not None:
            expected = self._posterior.expected.log_cost[rows]
            gain = feasible * mixture.expectation(
                lambda mean, sd: improvement(expected + mean, sd, log_best)
            )
        return Assessment(
            self._posterior,
            rows,
            self._log_mean[at],
            log_sd,
            feasible,
            log_best,
            gain,
            self._seconds[at],
        )

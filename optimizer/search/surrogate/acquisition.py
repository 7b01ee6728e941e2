"""The guided sampler's choice of the next point, and its rule for ending the search.

The point with the largest expected improvement per expected second is measured next, see
`expected_improvement`. The search ends when no point is expected to save `WORTHWHILE` of the
incumbent's cost. Points that the model cannot distinguish from the incumbent are measured before
that, so that the confirm phase decides between them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate.expected_improvement import Effort
from optimizer.search.surrogate.idle_models import OpenRows
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import (
    LogForecast,
    Posterior,
    TrialAtRow,
    cost_differences,
)
from optimizer.search.surrogate.residuals import Observations, Rows
from optimizer.simulator.forecast import Forecast
from optimizer.study.context import StudyContext
from optimizer.study.history import History, prune_load_factor
from optimizer.study.search_status import ExpectedCost, SearchStatus

Array = NDArray[np.float64]

WORTHWHILE = 0.01
"""Share of the incumbent's cost that a trial must be expected to save."""

_LEAST_TRIALS = 10
"""Trials that must follow the incumbent's before the search may end: the first few that happen to
fit make the forecast look better than it is."""

_OPTIMISM = 2.0
"""Standard deviations below the mean, for the lowest plausible cost."""

_MOST_TIES = 3
_TIE_SHARE = 0.02
"""Up to `_MOST_TIES` points of the incumbent's cell with a cost within this share are measured."""

_NORMAL_95 = 1.96

_CHEAPEST, _RANDOM = 3000, 1000
"""Points that are considered of a larger space: the cheapest by the forecast, and random others."""

_DRAWS = 512
_REGRET_POINTS = 400
_REGRET_QUANTILE = 0.95


class ForecastSource(Protocol):
    """Forecasts the points of a space from the records of a study."""

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Return the forecast of every point; the same object while there is no new trial."""

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Return the forecast of one row alone, in arrays of one element."""


@dataclass(frozen=True)
class FixedForecast:
    """A `ForecastSource` that learns from no trial."""

    forecast: Forecast

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Return the same forecast, whatever was measured."""
        del trials
        return self.forecast

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Return the same forecast of one row."""
        return self.after(trials).at(row)


def no_forecast(space: SearchSpace) -> FixedForecast:
    """Return a forecast that is the same for every point, so that only the trials count."""
    same = np.ones(len(space))
    return FixedForecast(Forecast(same, same, floor_log_excess=-same, log_sd=same))


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
        return self.log_mean - _OPTIMISM * self.log_sd

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


@dataclass
class _FittedForecast:
    """What follows from the records alone, and the assessments with trials that are running.

    Attributes:
        records: their number.
    """

    forecast: Forecast
    records: int
    expected: LogForecast
    posterior: Posterior
    assessments: dict[tuple[Position, ...], Assessment] = field(default_factory=dict)
    status: SearchStatus | None = None


class AcquisitionPolicy:
    """Chooses points of a space by a forecast and the history of a study.

    Args:
        history: to which the search adds its records.
        protocol: durations of the levels of a trial.
        opened: points that are searched before all others; None for all alike.
    """

    def __init__(
        self,
        space: SearchSpace,
        history: History,
        forecast: ForecastSource,
        context: StudyContext,
        protocol: CapacityProtocol,
        seed: int = 0,
        opened: OpenRows | None = None,
    ) -> None:
        self.space = space
        self._opened = opened
        self._history = history
        self._forecast = forecast
        self._context = context
        self._protocol = protocol
        self.seed = seed
        self._learnt = 0
        self._trials: list[TrialAtRow] = []
        self._errors: list[Observations] = []
        self._last_fit: _FittedForecast | None = None
        self._proposed: tuple[Position, ExpectedCost] | None = None

    def propose(self, running: Sequence[Position] = ()) -> Position | None:
        """Return the point to measure next; None when every point is measured or ruled out.

        Args:
            running: points that are being measured; they count as if they gave the expected
                result.
        """
        assessment = self._assess(running)
        if len(assessment.rows) == 0:
            return None
        at, why = assessment.best, assessment.why_best
        if self._converged(assessment) and (ties := self._ties(assessment)):
            at, why = ties[0], "no significant difference from the best"
        position = self.space.at(int(assessment.rows[at]))
        self._proposed = (position, assessment.expectation(at, why))
        return position

    def explain(self, position: Position) -> ExpectedCost | None:
        """Return the expected cost of the last proposal; None for any other point."""
        if self._proposed is None or self._proposed[0] != position:
            return None
        return self._proposed[1]

    def status(self) -> SearchStatus:
        """Return whether the search has converged, and the bound on its regret."""
        if self._history.incumbent is None:
            return SearchStatus()
        fit = self._fit()
        if fit.status is None:
            fit.status = self._new_status()
        return fit.status

    def _new_status(self) -> SearchStatus:
        assessment = self._assess(())
        if assessment.log_best is None or len(assessment.rows) == 0:
            return SearchStatus()
        regret_bound = self._regret_bound(assessment, assessment.log_best)
        if not self._converged(assessment) or self._ties(assessment):
            return SearchStatus(regret_bound=regret_bound)
        return SearchStatus(
            f"no configuration is expected to save {WORTHWHILE:.0%} of the best one's cost",
            regret_bound,
        )

    def _converged(self, assessment: Assessment) -> bool:
        """Whether no point is worthwhile, and enough trials followed the incumbent's."""
        incumbent, latest = self._history.incumbent, self._history.records[-_LEAST_TRIALS:]
        if incumbent is None or assessment.gain.max() >= WORTHWHILE:
            return False
        return len(latest) == _LEAST_TRIALS and incumbent not in latest

    def _assess(self, running: Sequence[Position]) -> Assessment:
        """Return the assessment of the points that are neither measured nor running."""
        fit, key = self._fit(), tuple(running)
        if key not in fit.assessments:
            # That without running trials gives the status; of the others, the last one is enough.
            alone = {at: own for at, own in fit.assessments.items() if not at}
            fit.assessments = {**alone, key: self._new_assessment(fit, running)}
        return fit.assessments[key]

    def _fit(self) -> _FittedForecast:
        """Return the models fitted to the records so far."""
        self._learn()
        records = self._history.records
        forecast, last = self._forecast.after(records), self._last_fit
        if last is None or last.forecast is not forecast or last.records != len(records):
            expected = LogForecast.of(forecast, self._context)
            errors = Observations.joined(self._errors)
            posterior = Posterior.fitted(self._trials, expected, self._features, errors)
            last = self._last_fit = _FittedForecast(forecast, len(records), expected, posterior)
        return last

    def _learn(self) -> None:
        """Take the records since the last call into account."""
        records = self._history.records
        for record in records[self._learnt :]:
            position = self.space.position_of(record.config)
            if position is not None:
                row, told = self.space.row_of[position], record.told_at_proposal
                before = records[: self._learnt if told is None else told]
                self._trials.append((row, record))
                self._errors.append(self._prediction_error(row, record, before))
            self._learnt += 1

    def _prediction_error(
        self, row: int, record: TrialRecord, before: Sequence[TrialRecord]
    ) -> Observations:
        """Return measured less forecast cost of a trial, by the forecast when it was proposed."""
        expected = LogForecast.of(self._forecast.of_point(before, row), self._context)
        error = cost_differences([(0, record)], expected)
        return replace(error, rows=error.rows + row)

    def _new_assessment(self, fit: _FittedForecast, running: Sequence[Position]) -> Assessment:
        pending = np.array([self.space.row_of[position] for position in running], dtype=np.int64)
        expected, trials = fit.expected, self._trials
        posterior = fit.posterior.with_pending(pending)
        rows = self._available(expected, {row for row, _ in trials} | set(pending.tolist()))
        log_mean, log_sd = posterior.log_cost(rows)
        log_best = self._log_best(posterior, trials, pending)
        gain = np.zeros(len(rows))
        if log_best is not None:
            gain = posterior.gain(rows, log_best)
        seconds = self._seconds(posterior, rows, trials)
        feasible = posterior.feasible(rows)
        return Assessment(posterior, rows, log_mean, log_sd, feasible, log_best, gain, seconds)

    @cached_property
    def _features(self) -> PointFeatures:
        return PointFeatures.of(self.space)

    def _available(self, expected: LogForecast, excluded: set[int]) -> Rows:
        """Return the rows that may be proposed."""
        rows = self._candidates(expected)
        available = [row for row in rows.tolist() if row not in excluded]
        if self._history.out_of_memory:
            configs = ((row, self.space.config(self.space.at(row))) for row in available)
            available = [row for row, config in configs if self._history.decided(config) is None]
        rows = np.array(available, dtype=np.int64)
        if self._opened is not None and (opened := self._opened.rows[rows]).any():
            rows = rows[opened]
        return rows

    def _candidates(self, expected: LogForecast) -> Rows:
        count = len(self.space)
        if count <= _CHEAPEST + _RANDOM:
            return np.arange(count)
        order = np.argsort(expected.log_cost, kind="stable")
        rng = np.random.default_rng((self.seed, len(self._history.records)))
        others = rng.choice(order[_CHEAPEST:], _RANDOM, replace=False)
        return np.sort(np.concatenate([order[:_CHEAPEST], others]))

    def _log_best(
        self, posterior: Posterior, trials: Sequence[TrialAtRow], pending: Rows
    ) -> float | None:
        """Return the lowest posterior mean of the points that met the limits, or are likely to."""
        met = np.array([row for row, record in trials if record.outcome == "ok"], dtype=np.int64)
        if len(met) == 0:
            return None
        likely = pending[posterior.feasible(pending) > 0.5] if len(pending) else pending
        mean, _ = posterior.log_cost(np.concatenate([met, likely]))
        return float(mean.min())

    def _seconds(self, posterior: Posterior, rows: Rows, trials: Sequence[TrialAtRow]) -> Array:
        effort = Effort.learnt(self._protocol, [record for _, record in trials])
        bound = prune_load_factor(self._history.incumbent, self._context.demand)
        bounded = np.zeros(len(rows))
        if bound is not None:
            bounded = posterior.saturates_below(rows, bound)
        restarts = np.zeros(len(rows))
        if trials:
            servers = self._features.servers
            restarts = (servers[rows] != servers[trials[-1][0]]).astype(np.float64)
        per_second = posterior.saturation(rows) * self._context.demand.requests_per_second
        return effort.seconds(per_second, bounded, restarts)

    def _ties(self, assessment: Assessment) -> list[int]:
        """Return the indices of tied points, the cheapest first."""
        incumbent, cells = self._history.incumbent, self._features.cells
        at = self.space.position_of(incumbent.config) if incumbent is not None else None
        if at is None or assessment.log_best is None:
            return []
        cell = cells[self.space.row_of[at]]
        measured = sum(int(cells[row] == cell) for row, _ in self._trials) - 1
        close = np.abs(assessment.log_mean - assessment.log_best) < _TIE_SHARE
        tied = np.flatnonzero((cells[assessment.rows] == cell) & close)
        order = np.argsort(assessment.log_mean[tied], kind="stable")
        return [int(n) for n in tied[order]][: max(0, _MOST_TIES - measured)]

    def _regret_bound(self, assessment: Assessment, log_best: float) -> float:
        """Return the quantile of the saving by the cheapest available point, from joint draws."""
        likeliest = np.sort(np.argsort(assessment.optimistic, kind="stable")[:_REGRET_POINTS])
        rng = np.random.default_rng((self.seed, len(self._history.records)))
        costs = assessment.posterior.log_cost_draws(assessment.rows[likeliest], _DRAWS, rng)
        costs[rng.random(costs.shape) >= assessment.feasible[likeliest]] = np.inf
        saved = np.maximum(0.0, 1 - np.exp(costs.min(axis=1) - log_best))
        return float(np.quantile(saved, _REGRET_QUANTILE))

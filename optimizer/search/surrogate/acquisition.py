"""The guided sampler's choice of the next point, and its rule for ending the search.

The point with the largest expected improvement per expected second is measured next, see
`assessment`. The search ends when no point is expected to save `WORTHWHILE` of the
incumbent's cost. Points that the model cannot distinguish from the incumbent are measured before
that, so that the confirm phase decides between them. What an unmeasured point may still save is
bounded by `regret`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.finalists import FINALISTS
from optimizer.search.surrogate import regret
from optimizer.search.surrogate.assessment import WORTHWHILE, Assessment, Candidates
from optimizer.search.surrogate.expected_improvement import Effort
from optimizer.search.surrogate.idle_models import OpenRows
from optimizer.search.surrogate.pending_residuals import PendingResiduals
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import (
    LogForecast,
    Posterior,
    TrialAtRow,
    cost_differences,
    informative_trials,
)
from optimizer.search.surrogate.residuals import Observations, Rows
from optimizer.simulator.forecast import Forecast
from optimizer.study.context import StudyContext
from optimizer.study.history import History, prune_load_factor
from optimizer.study.search_status import ExpectedCost, SearchStatus

Array = NDArray[np.float64]

_RUNNING_PER_RESULT = 4
"""A fit serves for one result, or for one of this many trials that run."""

_LEAST_TRIALS = 10
"""Trials that must follow the incumbent's before the search may end, fewer in a small space: the
first few that happen to fit make the forecast look better than it is."""

_MOST_TIES = 3
_TIE_SHARE = 0.02
"""Up to `_MOST_TIES` points of the incumbent's cell with a cost within this share are measured."""

_CHEAPEST, _RANDOM = 3000, 1000
"""Points that are considered of a larger space: the cheapest by the forecast, and random others."""


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


@dataclass
class _FittedForecast:
    """What follows from the records up to some number of them.

    Attributes:
        records: their number.
        out_of_memory: number of all records that rule larger configurations out.
        effort: of a trial.
        log_best: logarithm of the incumbent's cost, None while there is none.
        rows: that may be proposed.
        alone: what is expected of these, whatever runs.
        candidates: the same points, and what has run since the fit.
    """

    forecast: Forecast
    records: int
    out_of_memory: int
    posterior: Posterior
    effort: Effort
    log_best: float | None
    rows: Rows
    candidates: Candidates
    alone: Assessment
    status: SearchStatus | None = None


class AcquisitionPolicy:
    """Chooses points of a space by a forecast and the history of a study.

    Args:
        history: to which the search adds its records.
        protocol: durations of the levels of a trial.
        opened: returns the points that are searched before all others; None for all alike.
    """

    def __init__(
        self,
        space: SearchSpace,
        history: History,
        forecast: ForecastSource,
        context: StudyContext,
        protocol: CapacityProtocol,
        seed: int = 0,
        opened: Callable[[], OpenRows | None] = lambda: None,
    ) -> None:
        self.space = space
        self._opened = opened
        self._history = history
        self._forecast = forecast
        self._context = context
        self._protocol = protocol
        self.seed = seed
        self._trials: Sequence[TrialAtRow] = ()  # of the last fit, in the space
        self._told: list[TrialAtRow] = []  # of all fits
        self._errors: list[Observations] = []
        self._learnt = 0
        self._rows: list[int | None] = []
        self._running: list[int] = []
        self._last_fit: _FittedForecast | None = None
        self._proposed: tuple[Position, ExpectedCost] | None = None

    def propose(self, running: Sequence[Position] = ()) -> Position | None:
        """Return the point to measure next; None when every point is measured or ruled out.

        Args:
            running: points that are being measured; they count as if they gave the expected
                result.
        """
        self._running = [self.space.row_of[position] for position in running]
        assessment = self._assess()
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
        assessment = self._fit().alone
        if assessment.log_best is None or len(assessment.rows) == 0:
            return SearchStatus()
        regret_bound = self._regret_bound(assessment)
        if not self._converged(assessment) or self._ties(assessment):
            return SearchStatus(regret_bound=regret_bound)
        return SearchStatus(
            f"no configuration is expected to save {WORTHWHILE:.0%} of the best one's cost",
            regret_bound,
        )

    def _converged(self, assessment: Assessment) -> bool:
        """Whether no point is worthwhile, and enough trials followed the incumbent's."""
        least = regret.least_trials(_LEAST_TRIALS, len(self.space))
        incumbent, latest = self._history.incumbent, self._history.records[-least:]
        if incumbent is None or assessment.gain.max() >= WORTHWHILE:
            return False
        return len(latest) == least and incumbent not in latest

    def _assess(self) -> Assessment:
        """Return the assessment of the points that are neither measured nor running."""
        fit = self._fit()
        later = (row for row in self._told_rows[fit.records :] if row is not None)
        rows = [*self._running, *later]
        if not fit.candidates.may_run(rows):
            fit.candidates = self._candidates(
                fit.posterior, fit.effort, fit.log_best, fit.rows, rows
            )
        fit.candidates.add_running(rows)
        return fit.candidates.assessment

    def _fit(self) -> _FittedForecast:
        """Return the models fitted to the records so far.

        Where many trials run, a fit serves for several results: those of the others count as
        expected until the next one, as those do that are still running.
        """
        told = len(self._history.records)
        # A power of two, so that a worker more or less does not have it fitted again.
        step = 1 << max(0, (len(self._running) // _RUNNING_PER_RESULT).bit_length() - 1)
        records = self._history.records[: told - told % step]
        self._learn(records)
        forecast, last = self._forecast.after(records), self._last_fit
        now = len(records), len(self._history.out_of_memory)
        if (
            last is None
            or last.forecast is not forecast
            or (last.records, last.out_of_memory) != now
        ):
            last = self._last_fit = self._new_fit(forecast, len(records))
        return last

    def _new_fit(self, forecast: Forecast, records: int) -> _FittedForecast:
        expected = LogForecast.of(forecast, self._context)
        count = sum(row is not None for row in self._told_rows[:records])
        self._trials, errors = self._told[:count], Observations.joined(self._errors[:count])
        posterior = Posterior.fitted(self._trials, expected, self._features, errors)
        effort = Effort.learnt(self._protocol, [record for _, record in self._trials])
        rows, log_best = self._available(expected, records), self._log_best(posterior)
        candidates = self._candidates(posterior, effort, log_best, rows, self._running)
        return _FittedForecast(
            forecast,
            records,
            len(self._history.out_of_memory),
            posterior,
            effort,
            log_best,
            rows,
            candidates,
            alone=candidates.assessment,
        )

    def _candidates(
        self,
        posterior: Posterior,
        effort: Effort,
        log_best: float | None,
        rows: Rows,
        running: Sequence[int],
    ) -> Candidates:
        """Return the candidates among `rows`; points that run may be others too."""
        everything = np.union1d(rows, np.array(running, dtype=np.int64))
        residuals = PendingResiduals(posterior.cost, everything)
        seconds = self._seconds(posterior, effort, everything, *residuals.mixture().moments)
        available = np.isin(everything, rows)
        return Candidates(posterior, everything, available, residuals, seconds, log_best)

    def _learn(self, records: Sequence[TrialRecord]) -> None:
        """Take the records since the last fit into account."""
        for n, record in enumerate(records[self._learnt :], self._learnt):
            row, told = self._told_rows[n], record.told_at_proposal
            if row is not None:
                before = records[: n if told is None else told]
                self._told.append((row, record))
                self._errors.append(self._prediction_error(row, record, before))
        self._learnt = max(self._learnt, len(records))

    @property
    def _told_rows(self) -> Sequence[int | None]:
        """The row of each record; None where its configuration is not in the space."""
        for record in self._history.records[len(self._rows) :]:
            position = self.space.position_of(record.config)
            self._rows.append(None if position is None else self.space.row_of[position])
        return self._rows

    def _prediction_error(
        self, row: int, record: TrialRecord, before: Sequence[TrialRecord]
    ) -> Observations:
        """Return measured less forecast cost of a trial, by the forecast when it was proposed."""
        expected = LogForecast.of(self._forecast.of_point(before, row), self._context)
        error = cost_differences([(0, record)], expected)
        return replace(error, rows=error.rows + row)

    @cached_property
    def _features(self) -> PointFeatures:
        return PointFeatures.of(self.space)

    def _available(self, expected: LogForecast, records: int) -> Rows:
        """Return the rows that may be proposed after a number of records."""
        rows = self._considered(expected, records)
        measured = np.array([row for row, _ in self._trials], dtype=np.int64)
        rows = rows[~np.isin(rows, measured)]
        if self._history.out_of_memory:
            configs = (self.space.config(self.space.at(row)) for row in rows.tolist())
            undecided = [self._history.decided(config) is None for config in configs]
            rows = rows[np.array(undecided, dtype=bool)]
        opened = self._opened()
        if opened is not None and opened.rows[rows].any():
            rows = rows[opened.rows[rows]]
        return rows

    def _considered(self, expected: LogForecast, records: int) -> Rows:
        count = len(self.space)
        if count <= _CHEAPEST + _RANDOM:
            return np.arange(count)
        order = np.argsort(expected.log_cost, kind="stable")
        rng = np.random.default_rng((self.seed, records))
        others = rng.choice(order[_CHEAPEST:], _RANDOM, replace=False)
        return np.sort(np.concatenate([order[:_CHEAPEST], others]))

    def _log_best(self, posterior: Posterior) -> float | None:
        """Return the lowest posterior mean of the points that met the limits."""
        met = [row for row, record in informative_trials(self._trials) if record.outcome == "ok"]
        if not met:
            return None
        mean, _ = posterior.log_cost(np.array(met, dtype=np.int64))
        return float(mean.min())

    def _seconds(
        self, posterior: Posterior, effort: Effort, rows: Rows, residual: Array, sd: Array
    ) -> Array:
        """Return the expected seconds of the trials of some rows, by their residuals."""
        bound = prune_load_factor(self._history.incumbent, self._context.demand)
        log_saturation = posterior.expected.log_saturation[rows] - residual
        bounded, restarts = np.zeros(len(rows)), np.zeros(len(rows))
        if bound is not None:
            bounded = np.asarray(special.ndtr((math.log(bound) - log_saturation) / sd))
        if self._trials:
            servers = self._features.servers
            restarts = (servers[rows] != servers[self._trials[-1][0]]).astype(np.float64)
        per_second = np.exp(log_saturation) * self._context.demand.requests_per_second
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

    def _regret_bound(self, assessment: Assessment) -> float | None:
        """Return the bound on the regret; None after too few trials, or if none met the limits."""
        costs = {
            row: record.told_value or math.inf
            for row, record in self._trials
            if record.outcome == "ok"
        }
        least = regret.least_trials(regret.LEAST_TRIALS, len(self.space))
        if not costs or len(self._trials) < least:
            return None
        met = np.array(sorted(costs, key=costs.__getitem__), dtype=np.int64)
        pruned = [row for row, record in self._trials if record.outcome == "bounded"]
        others = np.union1d(assessment.rows, np.array(pruned, dtype=np.int64))
        drawn = regret.savings(
            assessment.posterior,
            met[:FINALISTS],
            met[FINALISTS:],
            others[~np.isin(others, met)],
            np.random.default_rng((self.seed, len(self._history.records))),
        )
        return regret.bound(drawn)

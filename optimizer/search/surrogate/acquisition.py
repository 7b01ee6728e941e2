"""Which point is worth measuring next, and when none is: what guides the guided search. Pure.

The best expected gain per expected second is measured next, see `expected_improvement`. The search
is over when no point is expected to save as much as `WORTHWHILE` of the incumbent's cost; what the
model cannot tell apart from the incumbent is measured before that, so that the confirm phase
decides between them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate.expected_improvement import Effort
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

_STOOD = 10
"""Trials that the incumbent must have stood before the search may end: early on a few that happen
to fit make the forecast look better than it is."""

_HOPE = 2.0
"""Standard deviations below the mean, where a point would turn out well."""

_TIES = 3
_TIED = 0.02
"""Points of the incumbent's cell that are measured beside it, and how close they must cost."""

_NORMAL_95 = 1.96

_LIKELIEST, _RANDOM = 3000, 1000
"""Points that are considered where a space has more: the cheapest by the forecast, and others."""

_DRAWS = 512
_REGRET_POINTS = 400
_REGRET_QUANTILE = 0.95


class ForecastSource(Protocol):
    """Says what is expected of the points of a space, by trials that were made: a study's first."""

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Of every point; the same object as before where there is no trial more."""

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Of the point in one row alone; arrays of one element."""


@dataclass(frozen=True)
class FixedForecast:
    """A `ForecastSource` that learns from no trial."""

    forecast: Forecast

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """See `ForecastSource`."""
        del trials
        return self.forecast

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """See `ForecastSource`."""
        return self.after(trials).at(row)


def no_forecast(space: SearchSpace) -> FixedForecast:
    """Expects the same of every point: everything is learnt from the trials."""
    same = np.ones(len(space))
    return FixedForecast(Forecast(same, same, floor_log_excess=-same, log_sd=same))


@dataclass(frozen=True)
class Assessment:
    """What is thought of the points that are neither measured nor ruled out.

    Attributes:
        rows: of these points; all arrays have one element for each.
        log_mean, log_sd: of the logarithm of the cost.
        feasible: probability that the limits are met.
        log_best: logarithm of the cost of the incumbent, None while there is none.
        gain: expected share of the incumbent's cost that is saved; 0 while there is none.
        seconds: that measuring is expected to take.
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
    def hoped(self) -> Array:
        """Logarithm of what each point costs if it turns out well."""
        return self.log_mean - _HOPE * self.log_sd

    @property
    def best(self) -> int:
        """Index of the point to measure next."""
        if self.log_best is None:
            cheapness = np.exp(self.log_mean.min() - self.log_mean)
            return int(np.argmax(self.feasible * cheapness))
        if self.gain.max() < WORTHWHILE:
            # What is measured before the search ends is to show whether that is right.
            return int(np.argmin(np.where(self.feasible > 0.5, self.hoped, np.inf)))
        return int(np.argmax(self.gain / self.seconds))

    @property
    def why_best(self) -> str:
        """Why that point is measured next."""
        if self.log_best is None:
            return "the cheapest that is likely to meet the limits"
        if self.gain.max() < WORTHWHILE:
            return f"nothing is expected to save {WORTHWHILE:.0%}; the most hopeful is tried"
        return "the largest saving per second"

    def expectation(self, at: int, why: str) -> ExpectedCost:
        """What is expected of one of the points."""
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


class AcquisitionPolicy:
    """Assesses the points of a space by a forecast and the history of a study.

    Args:
        history: the same as the search adds to.
        protocol: how long the levels of a trial take.
    """

    def __init__(
        self,
        space: SearchSpace,
        history: History,
        forecast: ForecastSource,
        context: StudyContext,
        protocol: CapacityProtocol,
        seed: int = 0,
    ) -> None:
        self.space = space
        self._history = history
        self._forecast = forecast
        self._context = context
        self._protocol = protocol
        self.seed = seed
        self._surprises: dict[int, Observations] = {}
        self._known: tuple[tuple[object, ...], Assessment] | None = None
        self._proposed: tuple[Position, ExpectedCost] | None = None

    def propose(self, running: Sequence[Position] = ()) -> Position | None:
        """The point to measure next; None when every point is measured or ruled out.

        Args:
            running: points that are being measured; they count as if they had come out as
                expected.
        """
        assessed = self._assess(running)
        if len(assessed.rows) == 0:
            return None
        at, why = assessed.best, assessed.why_best
        if self._converged(assessed) and (ties := self._ties(assessed)):
            at, why = ties[0], "it cannot be told from the best"
        position = self.space.at(int(assessed.rows[at]))
        self._proposed = (position, assessed.expectation(at, why))
        return position

    def explain(self, position: Position) -> ExpectedCost | None:
        """What was expected of a point as it was proposed; None of any but the last."""
        if self._proposed is None or self._proposed[0] != position:
            return None
        return self._proposed[1]

    def status(self) -> SearchStatus:
        """Whether anything worthwhile is left, and what may be."""
        if self._history.incumbent is None:
            return SearchStatus()
        assessed = self._assess(())
        if assessed.log_best is None or len(assessed.rows) == 0:
            return SearchStatus()
        regret_bound = self._regret_bound(assessed, assessed.log_best)
        if not self._converged(assessed) or self._ties(assessed):
            return SearchStatus(regret_bound=regret_bound)
        return SearchStatus(
            f"no configuration is expected to save {WORTHWHILE:.0%} of the best one's cost",
            regret_bound,
        )

    def _converged(self, assessed: Assessment) -> bool:
        """Whether nothing worthwhile is left, and the incumbent has stood for long enough."""
        incumbent, records = self._history.incumbent, self._history.records
        if incumbent is None or assessed.gain.max() >= WORTHWHILE:
            return False
        return sum(record.number > incumbent.number for record in records) >= _STOOD

    def _assess(self, running: Sequence[Position]) -> Assessment:
        """Kept until anything changes: the proposal and the status are asked one by one."""
        surprises = self._surprised()
        forecast = self._forecast.after(self._history.records)
        key = (forecast, len(self._history.records), *running)
        if self._known is None or not _same(self._known[0], key):
            self._known = (key, self._assessed(forecast, surprises, running))
        return self._known[1]

    def _surprised(self) -> Observations:
        """How far off the forecast was of each trial, as it was before it knew of that trial."""
        records = self._history.records
        for row, record in self._trials():
            if record.number not in self._surprises:
                before = [each for each in records if each.number < record.number]
                foreseen = self._forecast.of_point(before, row)
                expected = LogForecast.of(foreseen, self._context)
                seen = cost_differences([(0, record)], expected)
                self._surprises[record.number] = replace(seen, rows=seen.rows + row)
        return Observations.joined(self._surprises.values())

    def _assessed(
        self, forecast: Forecast, surprises: Observations, running: Sequence[Position]
    ) -> Assessment:
        expected = LogForecast.of(forecast, self._context)
        under_way = np.array([self.space.row_of[position] for position in running], dtype=np.int64)
        trials = list(self._trials())
        posterior = Posterior.after(trials, expected, self._features, surprises).with_pending(
            under_way
        )
        rows = self._open(expected, {row for row, _ in trials} | set(under_way.tolist()))
        log_mean, log_sd = posterior.log_cost(rows)
        log_best = self._log_best(posterior, trials, under_way)
        gain = np.zeros(len(rows))
        if log_best is not None:
            gain = posterior.gain(rows, log_best)
        seconds = self._seconds(posterior, rows, trials)
        feasible = posterior.feasible(rows)
        return Assessment(posterior, rows, log_mean, log_sd, feasible, log_best, gain, seconds)

    @cached_property
    def _features(self) -> PointFeatures:
        return PointFeatures.of(self.space)

    def _trials(self) -> Iterable[TrialAtRow]:
        """The trials of points that are in the space, with their rows."""
        for record in self._history.records:
            position = self.space.position_of(record.config)
            if position is not None:
                yield self.space.row_of[position], record

    def _open(self, expected: LogForecast, taken: set[int]) -> Rows:
        """Rows that may be proposed."""
        rows = self._candidates(expected)
        free = [row for row in rows.tolist() if row not in taken]
        if any(r.failure is not None and r.failure.out_of_memory for r in self._history.records):
            free = [row for row in free if self._undecided(row)]
        return np.array(free, dtype=np.int64)

    def _undecided(self, row: int) -> bool:
        return self._history.decided(self.space.config(self.space.at(row))) is None

    def _candidates(self, expected: LogForecast) -> Rows:
        count = len(self.space)
        if count <= _LIKELIEST + _RANDOM:
            return np.arange(count)
        order = np.argsort(expected.log_cost, kind="stable")
        rng = np.random.default_rng((self.seed, len(self._history.records)))
        others = rng.choice(order[_LIKELIEST:], _RANDOM, replace=False)
        return np.sort(np.concatenate([order[:_LIKELIEST], others]))

    def _log_best(
        self, posterior: Posterior, trials: Sequence[TrialAtRow], under_way: Rows
    ) -> float | None:
        """Of what met the limits, or is thought to; less what its measurement owes to luck."""
        met = np.array([row for row, record in trials if record.outcome == "ok"], dtype=np.int64)
        if len(met) == 0:
            return None
        likely = under_way[posterior.feasible(under_way) > 0.5] if len(under_way) else under_way
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

    def _ties(self, assessed: Assessment) -> list[int]:
        """Indices of points to be measured beside the incumbent, the cheapest first."""
        incumbent, cells = self._history.incumbent, self._features.cells
        at = self.space.position_of(incumbent.config) if incumbent is not None else None
        if at is None or assessed.log_best is None:
            return []
        cell = cells[self.space.row_of[at]]
        beside = sum(int(cells[row] == cell) for row, _ in self._trials()) - 1
        close = np.abs(assessed.log_mean - assessed.log_best) < _TIED
        tied = np.flatnonzero((cells[assessed.rows] == cell) & close)
        order = np.argsort(assessed.log_mean[tied], kind="stable")
        return [int(n) for n in tied[order]][: max(0, _TIES - beside)]

    def _regret_bound(self, assessed: Assessment, log_best: float) -> float:
        """The quantile of what the cheapest open point saves, from joint draws."""
        kept = np.sort(np.argsort(assessed.hoped, kind="stable")[:_REGRET_POINTS])
        rng = np.random.default_rng((self.seed, len(self._history.records)))
        costs = assessed.posterior.log_cost_draws(assessed.rows[kept], _DRAWS, rng)
        costs[rng.random(costs.shape) >= assessed.feasible[kept]] = np.inf
        saved = np.maximum(0.0, 1 - np.exp(costs.min(axis=1) - log_best))
        return float(np.quantile(saved, _REGRET_QUANTILE))


def _same(one: tuple[object, ...], two: tuple[object, ...]) -> bool:
    """Whether the forecasts are one object and the rest is equal."""
    return one[0] is two[0] and one[1:] == two[1:]

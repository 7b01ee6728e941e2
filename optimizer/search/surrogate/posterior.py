"""What the forecast and the trials together say of every point of a space. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy import special

from optimizer.measurement.cost import usd_per_million
from optimizer.measurement.level import FLOOR_SHARE
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate.expected_improvement import improvement
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.residuals import (
    Observations,
    ResidualModel,
    Rows,
    Scale,
    Scales,
    Terms,
)
from optimizer.simulator.forecast import Forecast
from optimizer.study.context import StudyContext

Array = NDArray[np.float64]

_JUST_MET = -0.05
"""Logarithm of latency over limit, for a point that met the limit where it was thought to miss."""

EXCESS_SCALES = replace(
    Scales(), smooth=Scale(0.15, 0.7), rough=Scale(0.15, 0.5), noise=Scale(0.05, 0.3)
)
"""Latency at the floor load is less well known than capacity: few requests, small batches."""

TrialAtRow = tuple[int, TrialRecord]
"""A trial and the row of its point."""


@dataclass(frozen=True)
class LogForecast:
    """The forecast in the terms of the search, arrays of shape [points].

    Attributes:
        log_cost: logarithm of dollars per million at the capacity.
        log_cost_saturated: the same under saturation.
        log_saturation: logarithm of the load factor under saturation.
        log_excess: logarithm of latency over limit at the floor load.
        log_sd: how unsure the first three are.
    """

    log_cost: Array
    log_cost_saturated: Array
    log_saturation: Array
    log_excess: Array
    log_sd: Array

    @classmethod
    def of(cls, forecast: Forecast, context: StudyContext) -> LogForecast:
        """With the price and demand of `context`."""
        demand = context.demand
        whole = usd_per_million(
            context.price.usd_per_hour, demand.requests_per_second, demand.inferences_per_request
        )
        # A point for which no load is forecast to be within the limits may still meet them: it has
        # a cost to begin with.
        least = FLOOR_SHARE * forecast.saturation
        log_capacity = np.log(np.maximum(forecast.capacity, least))
        log_saturation = np.log(forecast.saturation)
        return cls(
            math.log(whole) - log_capacity,
            math.log(whole) - log_saturation,
            log_saturation,
            forecast.floor_log_excess,
            forecast.log_sd,
        )


@dataclass(frozen=True)
class Posterior:
    """Models of cost and of latency at the floor load, fitted to the trials so far."""

    expected: LogForecast
    cost: ResidualModel
    excess: ResidualModel
    works: Array

    @classmethod
    def after(
        cls,
        trials: Sequence[TrialAtRow],
        expected: LogForecast,
        features: PointFeatures,
        surprises: Observations | None = None,
    ) -> Posterior:
        """What is believed after these trials, in the order in which they were made.

        Args:
            surprises: by how much the costs of trials differed from what was expected before they
                were made: how far off `expected` may be, which has learnt from them, is told by
                that alone. None where it has learnt from none of them.
        """
        differences = cost_differences(trials, expected)
        scaled = ResidualModel.fitted(
            Terms(features, _centred(expected.log_cost), expected.log_sd),
            differences if surprises is None else surprises,
            Scales(),
        )
        excess_terms = Terms(features, _centred(expected.log_excess), expected.log_sd)
        excess = _excess_differences(trials, expected)
        # What was as expected by assumption says nothing of how far off the forecast may be.
        telling = excess.differences != 0
        surprises = Observations(excess.rows[telling], excess.differences[telling])
        return cls(
            expected,
            scaled.given(differences),
            ResidualModel.fitted(excess_terms, surprises, EXCESS_SCALES).given(excess),
            _shares_that_work(trials, features),
        )

    def with_pending(self, rows: Rows) -> Posterior:
        """As if these points, which are being measured, had come out as expected."""
        return replace(self, cost=self.cost.with_pending(rows)) if len(rows) else self

    def log_cost(self, rows: Rows) -> tuple[Array, Array]:
        """Mean and standard deviation of the logarithm of the cost at capacity."""
        mean, sd = self.cost.predict(rows)
        return self.expected.log_cost[rows] + mean, sd

    def gain(self, rows: Rows, log_best: float) -> Array:
        """Expected share of the best cost that each point saves within the limits."""
        expected = self.expected.log_cost[rows]
        saved = self.cost.expectation(
            rows, lambda mean, sd: improvement(expected + mean, sd, log_best)
        )
        return saved * self.feasible(rows)

    def log_cost_draws(self, rows: Rows, count: int, rng: np.random.Generator) -> Array:
        """Joint draws of it, [count, rows]."""
        drawn: Array = self.expected.log_cost[rows] + self.cost.draws(rows, count, rng)
        return drawn

    def feasible(self, rows: Rows) -> Array:
        """Probability that each point can be served at all and meets the limits."""
        expected, noise = self.expected.log_excess[rows], self.excess.noise
        met = self.excess.expectation(
            rows, lambda mean, sd: special.ndtr(-(expected + mean) / np.hypot(sd, noise))
        )
        return met * self.works[rows]

    def saturates_below(self, rows: Rows, load_factor: float) -> Array:
        """Probability that each point's saturation is below a load factor."""
        mean, sd = self.cost.predict(rows)
        log_saturation = self.expected.log_saturation[rows] - mean
        away = (math.log(load_factor) - log_saturation) / sd
        return np.asarray(special.ndtr(away))

    def saturation(self, rows: Rows) -> Array:
        """Load factor under saturation, the median of what is believed."""
        mean, _ = self.cost.predict(rows)
        return cast(Array, np.exp(self.expected.log_saturation[rows] - mean))


def _centred(values: Array) -> Array:
    return cast(Array, values - values.mean())


def cost_differences(trials: Sequence[TrialAtRow], expected: LogForecast) -> Observations:
    """Logarithms of costs less what was expected.

    What was told is the cost at capacity of what is ok, and at saturation of everything else.
    """
    rows, differences = [], []
    for row, record in trials:
        if record.told_value is not None:
            at_capacity = record.outcome == "ok"
            own = expected.log_cost if at_capacity else expected.log_cost_saturated
            rows.append(row)
            differences.append(math.log(record.told_value) - own[row])
    return _observed(rows, differences)


def _excess_differences(trials: Sequence[TrialAtRow], expected: LogForecast) -> Observations:
    """Latencies at the floor load are seen only where they miss the limits.

    What met them is taken to be as forecast, or to have just met them where it was thought to miss.
    """
    rows, differences = [], []
    for row, record in trials:
        forecast = expected.log_excess[row]
        if record.outcome == "infeasible" and record.constraints:
            rows.append(row)
            differences.append(math.log1p(max(v for _, v in record.constraints)) - forecast)
        elif record.outcome == "ok":
            rows.append(row)
            differences.append(min(forecast, _JUST_MET) - forecast)
    return _observed(rows, differences)


def _observed(rows: Sequence[int], differences: Sequence[float]) -> Observations:
    return Observations(np.array(rows, dtype=np.int64), np.array(differences, dtype=np.float64))


def _shares_that_work(trials: Sequence[TrialAtRow], features: PointFeatures) -> Array:
    """Share of the trials of each artefact and layout that did not fail, one more counted so."""
    worked, failed = np.ones(len(features.artifacts)), np.zeros(len(features.artifacts))
    for row, record in trials:
        alike = (features.artifacts == features.artifacts[row]) & (
            features.layouts == features.layouts[row]
        )
        (failed if record.outcome == "failed" else worked)[alike] += 1
    return cast(Array, worked / (worked + failed))

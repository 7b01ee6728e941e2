"""The posterior of cost and latency at every point of a space, from forecast and trials."""

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
from optimizer.search.informative_trials import informative, told_or_worst
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

_LOG_JUST_MET = -0.05
"""Log of latency over limit, for a point that met the limit where the forecast misses it."""

OVERSHOOT_SCALES = replace(
    Scales(), smooth=Scale(0.15, 0.7), rough=Scale(0.15, 0.5), noise=Scale(0.05, 0.3)
)
"""Latency at the floor load is forecast less well than capacity: few requests, small batches."""

_MOST_TRIALS = 400
"""Trials that the models are conditioned on: half of them the cheapest, half evenly spread."""

TrialAtRow = tuple[int, TrialRecord]
"""The row of a point and the trial that measured it."""


@dataclass(frozen=True)
class LogForecast:
    """The forecast in logarithms of cost, arrays of shape [points].

    Attributes:
        log_cost: of dollars per million at the capacity.
        log_cost_at_saturation: of dollars per million at saturation.
        log_saturation: of the load factor at saturation.
        log_overshoot: of latency over limit at the floor load.
        log_sd: standard deviation of the first three.
    """

    log_cost: Array
    log_cost_at_saturation: Array
    log_saturation: Array
    log_overshoot: Array
    log_sd: Array

    @classmethod
    def of(cls, forecast: Forecast, context: StudyContext) -> LogForecast:
        """Return the logarithms of a forecast at the study's price and demand."""
        demand = context.demand
        full_load_cost = usd_per_million(
            context.price.usd_per_hour, demand.requests_per_second, demand.inferences_per_request
        )
        # A point that is forecast to miss the limits at every load may still meet them, so it needs
        # a cost too.
        floor = FLOOR_SHARE * forecast.saturation
        log_capacity = np.log(np.maximum(forecast.capacity, floor))
        log_saturation = np.log(forecast.saturation)
        return cls(
            math.log(full_load_cost) - log_capacity,
            math.log(full_load_cost) - log_saturation,
            log_saturation,
            forecast.floor_log_excess,
            forecast.log_sd,
        )


@dataclass(frozen=True)
class Posterior:
    """Models of cost and of latency at the floor load, fitted to the trials.

    Attributes:
        noisy_cost: the model of cost with an uncertain noise, for joint draws.
        success: probability that a point can be served at all, [points].
    """

    expected: LogForecast
    cost: ResidualModel
    noisy_cost: ResidualModel
    overshoot: ResidualModel
    success: Array

    @classmethod
    def fitted(
        cls,
        trials: Sequence[TrialAtRow],
        expected: LogForecast,
        features: PointFeatures,
        errors: Observations | None = None,
    ) -> Posterior:
        """Fit the models to these trials, in the order in which they were made.

        Args:
            errors: logarithms of the trials' costs less those that were forecast before each of
                them. They alone show the error of `expected`, which was calibrated with the trials.
                None where it was not.
        """
        success, trials = _success_shares(trials, features), informative_trials(trials)
        differences = cost_differences(trials, expected)
        cost_model = ResidualModel.fitted(
            Terms(features, _centred(expected.log_cost), expected.log_sd),
            differences if errors is None else errors,
            Scales(),
        )
        overshoot_terms = Terms(features, _centred(expected.log_overshoot), expected.log_sd)
        overshoot = _overshoot_differences(trials, expected)
        # A difference of 0 was assumed, and says nothing about the error of the forecast.
        informative = overshoot.differences != 0
        missed = overshoot.at(informative)
        return cls(
            expected,
            cost_model.given(differences),
            cost_model.with_uncertain_noise().given(differences),
            ResidualModel.fitted(overshoot_terms, missed, OVERSHOOT_SCALES).given(overshoot),
            success,
        )

    def log_cost(self, rows: Rows) -> tuple[Array, Array]:
        """Return mean and standard deviation of the log cost at capacity."""
        mean, sd = self.cost.predict(rows)
        return self.expected.log_cost[rows] + mean, sd

    def log_cost_draws(self, rows: Rows, count: int, rng: np.random.Generator) -> Array:
        """Return joint draws of the log cost at capacity with an uncertain noise, [count, rows]."""
        draws: Array = self.expected.log_cost[rows] + self.noisy_cost.draws(rows, count, rng)
        return draws

    def feasible(self, rows: Rows) -> Array:
        """Return the probability that each point can be served and meets the limits."""
        expected, noise = self.expected.log_overshoot[rows], self.overshoot.noise
        met = self.overshoot.mixture(rows).expectation(
            lambda mean, sd: special.ndtr(-(expected + mean) / np.hypot(sd, noise))
        )
        return met * self.success[rows]


def informative_trials(trials: Sequence[TrialAtRow]) -> Sequence[TrialAtRow]:
    """Return at most `_MOST_TRIALS`, in their order, so that a long search costs no more."""
    if len(trials) <= _MOST_TRIALS:
        return trials
    costs = [told_or_worst(record) for _, record in trials]
    kept = informative(np.argsort(costs, kind="stable").tolist(), _MOST_TRIALS)
    return [trials[n] for n in sorted(kept)]


def _centred(values: Array) -> Array:
    return cast(Array, values - values.mean())


def cost_differences(trials: Sequence[TrialAtRow], expected: LogForecast) -> Observations:
    """Return the logarithms of measured costs less the forecast ones.

    The told value is the cost at capacity for "ok", and at saturation for every other outcome.
    """
    differences = []
    for row, record in trials:
        if record.told_value is not None:
            at_capacity = record.outcome == "ok"
            own = expected.log_cost if at_capacity else expected.log_cost_at_saturation
            differences.append((row, record, math.log(record.told_value) - own[row]))
    return _observations(differences)


def _overshoot_differences(trials: Sequence[TrialAtRow], expected: LogForecast) -> Observations:
    """Return measured less forecast latency at the floor load.

    It is measured only where it misses the limits. A point that met them counts as forecast, or as
    just within the limit where the forecast misses it.
    """
    differences = []
    for row, record in trials:
        forecast = expected.log_overshoot[row]
        if record.outcome == "infeasible" and record.constraints:
            missed = math.log1p(max(v for _, v in record.constraints))
            differences.append((row, record, missed - forecast))
        elif record.outcome == "ok":
            differences.append((row, record, min(forecast, _LOG_JUST_MET) - forecast))
    return _observations(differences)


def _observations(differences: Sequence[tuple[int, TrialRecord, float]]) -> Observations:
    """Return the differences of trials, each with its row."""
    disturbances = [
        math.log(record.measurement.slowdown) if record.measurement is not None else 0.0
        for _, record, _ in differences
    ]
    return Observations(
        np.array([row for row, _, _ in differences], dtype=np.int64),
        np.array([value for _, _, value in differences], dtype=np.float64),
        np.array(disturbances, dtype=np.float64),
    )


def _success_shares(trials: Sequence[TrialAtRow], features: PointFeatures) -> Array:
    """Return the share of trials with the same artefact and layout that succeeded, plus one."""
    similar = features.artifacts * (features.layouts.max() + 1) + features.layouts
    failed = [row for row, record in trials if record.outcome == "failed"]
    tried = np.bincount(similar[[row for row, _ in trials]], minlength=similar.max() + 1)
    lost = np.bincount(similar[failed], minlength=similar.max() + 1)
    return cast(Array, ((1 + tried - lost) / (1 + tried))[similar])

"""Predicted cost of unmeasured configurations within a latency limit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from optimizer.analysis.latency_curve import (
    Capacity,
    MeasuredConfigurationLevels,
    PricedConfiguration,
    WithinLimit,
)
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Score, score, usd_per_million
from optimizer.measurement.estimates import NORMAL_QUANTILE
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import LogForecast, Posterior, TrialAtRow
from optimizer.simulator.forecast import Forecast
from optimizer.study.context import StudyContext
from optimizer.study.history import History

WORTH_SAYING = 0.1
"""Share of the cheapest measured cost that an unmeasured configuration must be thought to save."""

_LIKELY = 0.5
"""Probability that it meets the limit at all, above which it is worth a word."""


class Unmeasured:
    """The points of a space whose capacity a study has not searched for.

    Args:
        space: less what the prepare phase dropped.
        trials: of the study.
        configurations: that the study measured.
        context: the price and the demand.
    """

    def __init__(
        self,
        space: SearchSpace,
        trials: Sequence[TrialRecord],
        configurations: Sequence[MeasuredConfigurationLevels],
        context: StudyContext,
    ) -> None:
        self._space = space
        self._history = History({record.number: record for record in trials})
        self._configurations = {each.config: each for each in configurations}
        self._context = context
        self._features = PointFeatures.of(space)

    def cheaper(self, within: WithinLimit, forecast: Forecast) -> PricedConfiguration | None:
        """Return the cheapest unmeasured configuration, if it saves at least `WORTH_SAYING`.

        Both are compared at the lower ends of their capacities (see `PricedConfiguration`). The
        simulator's errors for the measured configurations correct it, as they do in a search.

        Args:
            within: what the measured ones cost.
            forecast: of every point, for the same limit.
        """
        expected = LogForecast.of(forecast, self._context)
        posterior = Posterior.fitted(list(self._trials_within(within)), expected, self._features)
        rows = np.arange(len(self._space))
        log_costs, sds = posterior.log_cost(rows)
        surely = log_costs + NORMAL_QUANTILE * sds
        surely[posterior.feasible(rows) <= _LIKELY] = math.inf
        bound = math.inf
        if within.cheapest is not None:
            bound = math.log((1 - WORTH_SAYING) * within.cheapest.surely_usd_per_million)
        for row in np.argsort(surely, kind="stable").tolist():
            if surely[row] >= bound:
                return None
            config = self._space.config(self._space.at(row))
            if self._open(config):
                return self._offer(config, float(log_costs[row]), float(sds[row]))
        return None

    def _open(self, config: ServingConfig) -> bool:
        """Return whether a configuration may still be measured; a pruned one may."""
        decided = self._history.decided(config)
        return decided is None or decided.outcome == "bounded"

    def _trials_within(self, within: WithinLimit) -> Iterator[TrialAtRow]:
        """Yield the trials as they would have ended within this limit."""
        offers = {offer.config: offer for offer in within.offers}
        for record in self._history.records:
            position = self._space.position_of(record.config)
            if position is None:
                continue
            levels, offer = self._configurations.get(record.config), offers.get(record.config)
            if levels is not None:
                record = self._judged(record, levels, offer, within.limit_ms)  # noqa: PLW2901
            yield self._space.row_of[position], record

    def _judged(
        self,
        record: TrialRecord,
        levels: MeasuredConfigurationLevels,
        offer: PricedConfiguration | None,
        limit_ms: float,
    ) -> TrialRecord:
        """Return a trial as judged by this limit; an extrapolated one tells its saturation only."""
        if offer is not None and offer.basis == "measured":
            return replace(record, outcome="ok", told_value=offer.usd_per_million)
        saturated = levels.saturation * levels.demand_per_second
        told = self._usd_per_million(saturated)
        if offer is not None or levels.least_latency_ms is None:
            return replace(record, outcome="bounded", told_value=told)
        missed = (("limit", levels.least_latency_ms / limit_ms - 1),)
        return replace(record, outcome="infeasible", told_value=told, constraints=missed)

    def _offer(self, config: ServingConfig, log_cost: float, sd: float) -> PricedConfiguration:
        """Return a prediction with its interval at `CONFIDENCE`."""
        whole = self._usd_per_million(1.0)
        at = whole / math.exp(log_cost)
        capacity = Capacity(at, *(at * math.exp(s * NORMAL_QUANTILE * sd) for s in (-1, 1)))
        return PricedConfiguration(config, "predicted", capacity, self._score(capacity))

    def _score(self, capacity: Capacity) -> Score:
        context = self._context
        return score(capacity.per_second, capacity.low, context.price, context.demand)

    def _usd_per_million(self, requests_per_second: float) -> float:
        each = self._context.demand.inferences_per_request
        return usd_per_million(self._context.price.usd_per_hour, requests_per_second, each)

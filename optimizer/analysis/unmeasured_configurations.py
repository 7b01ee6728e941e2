"""What configurations that were not measured are believed to cost within some latency limit."""

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
        known: what they say of each configuration.
        setting: the price and the demand.
    """

    def __init__(
        self,
        space: SearchSpace,
        trials: Sequence[TrialRecord],
        known: Sequence[MeasuredConfigurationLevels],
        setting: StudyContext,
    ) -> None:
        self._space = space
        self._history = History({record.number: record for record in trials})
        self._known = {each.config: each for each in known}
        self._setting = setting
        self._likeness = PointFeatures.of(space)

    def cheaper(self, within: WithinLimit, forecast: Forecast) -> PricedConfiguration | None:
        """The one that surely costs least within a limit, if it saves `WORTH_SAYING`.

        Both are compared at the lower ends of their capacities (see `PricedConfiguration`). The
        simulator's errors for the measured configurations correct it, as they do in a search.

        Args:
            within: what the measured ones cost.
            forecast: of every point, for the same limit.
        """
        expected = LogForecast.of(forecast, self._setting)
        belief = Posterior.fitted(list(self._seen(within)), expected, self._likeness)
        rows = np.arange(len(self._space))
        log_costs, sds = belief.log_cost(rows)
        surely = log_costs + NORMAL_QUANTILE * sds
        surely[belief.feasible(rows) <= _LIKELY] = math.inf
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
        """Whether a configuration was not measured, at most bounded, and may still be."""
        decided = self._history.decided(config)
        return decided is None or decided.outcome == "bounded"

    def _seen(self, within: WithinLimit) -> Iterator[TrialAtRow]:
        """The trials as they would have ended within this limit."""
        offers = {offer.config: offer for offer in within.offers}
        for record in self._history.records:
            position = self._space.position_of(record.config)
            if position is None:
                continue
            known, offer = self._known.get(record.config), offers.get(record.config)
            if known is not None:
                record = self._judged(record, known, offer, within.limit_ms)  # noqa: PLW2901
            yield self._space.row_of[position], record

    def _judged(
        self,
        record: TrialRecord,
        known: MeasuredConfigurationLevels,
        offer: PricedConfiguration | None,
        limit_ms: float,
    ) -> TrialRecord:
        """What was extrapolated tells no more than the rate at saturation."""
        if offer is not None and offer.basis == "measured":
            return replace(record, outcome="ok", told_value=offer.usd_per_million)
        saturated = known.saturation * known.demand_per_second
        told = self._usd_per_million(saturated)
        if offer is not None or known.least_latency_ms is None:
            return replace(record, outcome="bounded", told_value=told)
        missed = (("limit", known.least_latency_ms / limit_ms - 1),)
        return replace(record, outcome="infeasible", told_value=told, constraints=missed)

    def _offer(self, config: ServingConfig, log_cost: float, sd: float) -> PricedConfiguration:
        """A prediction with the interval at `CONFIDENCE` of what is not known of it."""
        whole = self._usd_per_million(1.0)
        at = whole / math.exp(log_cost)
        capacity = Capacity(at, *(at * math.exp(s * NORMAL_QUANTILE * sd) for s in (-1, 1)))
        return PricedConfiguration(config, "predicted", capacity, self._score(capacity))

    def _score(self, capacity: Capacity) -> Score:
        setting = self._setting
        return score(capacity.per_second, capacity.low, setting.price, setting.demand)

    def _usd_per_million(self, requests_per_second: float) -> float:
        each = self._setting.demand.inferences_per_request
        return usd_per_million(self._setting.price.usd_per_hour, requests_per_second, each)

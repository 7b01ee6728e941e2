"""What each latency limit costs, from the load levels that a study measured.

A limit is named by the stream whose own limit is the shortest; the limits of other streams keep
their proportion to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Demand, Price, Score, score
from optimizer.measurement.level import (
    HIGHEST_SHARE,
    LoadLevel,
    Measurement,
    floor_per_second,
)
from optimizer.measurement.level_checks import valid_open_loop
from optimizer.measurement.other_limits import share_within
from optimizer.workload.streams import Stream

Basis = Literal["measured", "extrapolated", "predicted"]
"""measured: the limit was searched for, or lies among the latencies that the levels show.
extrapolated: from levels that are all on one side of it. predicted: by the simulator and the other
configurations' trials, of one that was not measured."""

_LIMITS = 8
_LONGEST = 2.0
"""Of the study's own limit, where none is asked for."""


@dataclass(frozen=True)
class Capacity:
    """Requests a second of one replica within a limit, with the interval at `CONFIDENCE`.

    Attributes:
        high: None where no load was too much.
    """

    per_second: float
    low: float
    high: float | None


@dataclass(frozen=True)
class MeasuredConfigurationLevels:
    """What a study has measured of one configuration.

    Attributes:
        saturation: load factor under saturation, in the trial of the capacity.
        levels: of the trial and of whatever was measured of it besides.
        certified: (limit in ms, the measurement within it), ascending.
        searched_ms: the limits that its capacity was searched for within.
    """

    config: ServingConfig
    saturation: float
    levels: tuple[LoadLevel, ...]
    certified: tuple[tuple[float, Measurement], ...]
    searched_ms: tuple[float, ...]

    @property
    def demand_per_second(self) -> float:
        """Requests a second at load factor 1.0."""
        return self.certified[0][1].demand_per_second

    @property
    def least_latency_ms(self) -> float | None:
        """The shortest limit that any level would have met; None without an open-loop level."""
        latencies_ms = [
            level.shortest_limit_ms * (1 + level.limit_overshoot)
            for level in valid_open_loop(self.levels)
        ]
        return min(latencies_ms, default=None)


@dataclass(frozen=True)
class PricedConfiguration:
    """One configuration within one limit, priced for the demand."""

    config: ServingConfig
    basis: Basis
    capacity: Capacity
    score: Score

    @property
    def usd_per_million(self) -> float:
        """At the capacity as it is estimated."""
        return self.score.usd_per_million_at_capacity

    @property
    def surely_usd_per_million(self) -> float:
        """At the lower end of the capacity: what offers are compared by.

        By the estimates alone, the least certain ones would win.
        """
        return self.usd_per_million * self.capacity.per_second / self.capacity.low


@dataclass(frozen=True)
class WithinLimit:
    """What a limit costs.

    Attributes:
        limit_ms: of the stream whose own limit is the shortest.
        offers: of every configuration with a capacity within it, cheapest first.
        predicted: one that was not measured and is expected to be cheaper, None without.
    """

    limit_ms: float
    offers: tuple[PricedConfiguration, ...]
    predicted: PricedConfiguration | None = None

    @property
    def cheapest(self) -> PricedConfiguration | None:
        """Of what was measured; None where nothing meets the limit."""
        return self.offers[0] if self.offers else None


@dataclass(frozen=True)
class LatencyCosts:
    """What each latency limit costs, by what a study has found.

    Attributes:
        streams: with the study's own limits, which vary in the same proportion.
        searched_ms: the limits that the study was searched for.
        curve: by limit, ascending.
        unconfirmed: whether nothing was confirmed of what the study recommends.
    """

    study: str
    streams: tuple[Stream, ...]
    searched_ms: tuple[float, ...]
    price: Price
    demand: Demand
    curve: tuple[WithinLimit, ...]
    unconfirmed: bool = False

    @property
    def shortest(self) -> Stream:
        """The stream whose limit names the limits of all."""
        return min(self.streams, key=lambda stream: stream.limit.latency_ms)

    @property
    def front(self) -> list[tuple[ServingConfig, list[float]]]:
        """The configurations that are cheapest within some limit, and these limits, in ms."""
        front: dict[ServingConfig, list[float]] = {}
        for within in self.curve:
            if within.cheapest is not None:
                front.setdefault(within.cheapest.config, []).append(within.limit_ms)
        return list(front.items())


def capacity_within(
    configuration: MeasuredConfigurationLevels, limit_ms: float
) -> tuple[Capacity, Basis] | None:
    """Return the capacity of a configuration within a limit; None where it is 0.

    Between two limits with a measured capacity, it is at least that of the shorter limit and at
    most that of the longer one.
    """
    below = [measurement for limit, measurement in configuration.certified if limit <= limit_ms]
    above = [measurement for limit, measurement in configuration.certified if limit >= limit_ms]
    if above and above[0].load_factor == 0:
        return None
    if below and above and below[-1].load_factor == above[0].load_factor:
        return _capacity_of(above[0]), "measured"
    estimated = _estimated(configuration, limit_ms)
    if estimated is None:
        return None
    capacity, basis = estimated
    if above:
        capacity = _at_most(capacity, above[0])
    if below:
        capacity = _at_least(capacity, below[-1])
    return capacity, basis


def _capacity_of(measurement: Measurement) -> Capacity:
    return Capacity(
        measurement.capacity_per_second,
        measurement.capacity_low_per_second,
        measurement.capacity_high_per_second,
    )


def _estimated(
    configuration: MeasuredConfigurationLevels, limit_ms: float
) -> tuple[Capacity, Basis] | None:
    """Estimate a capacity from the levels; None where none met the limit and it may be 0."""
    within = share_within(configuration.levels, configuration.saturation, limit_ms)
    if within is None:
        return None
    saturated = configuration.saturation * configuration.demand_per_second
    floor = floor_per_second(saturated)
    at, low, high = (share * saturated for share in (within.share, within.low, within.high))
    if not within.met and low < floor:
        return None
    at = max(at, floor)
    capacity = Capacity(at, min(at, max(low, floor)), max(at, high))
    return capacity, "measured" if within.shown else "extrapolated"


def _at_most(capacity: Capacity, bound: Measurement) -> Capacity:
    at = min(capacity.per_second, bound.capacity_per_second)
    ends = (capacity.high, bound.capacity_high_per_second)
    high = min((end for end in ends if end is not None), default=None)
    return Capacity(at, min(capacity.low, at), None if high is None else max(at, high))


def _at_least(capacity: Capacity, bound: Measurement) -> Capacity:
    at = max(capacity.per_second, bound.capacity_per_second)
    low = min(at, max(capacity.low, bound.capacity_low_per_second))
    return Capacity(at, low, None if capacity.high is None else max(capacity.high, at))


def latency_curve(
    configurations: Sequence[MeasuredConfigurationLevels],
    limits_ms: Sequence[float],
    price: Price,
    demand: Demand,
) -> tuple[WithinLimit, ...]:
    """Return what the measured configurations cost within each limit, ascending.

    The capacity within a limit is also a lower bound of the capacity within every longer one.
    """
    curve = []
    served: dict[ServingConfig, tuple[Capacity, Basis]] = {}
    for limit_ms in sorted(limits_ms):
        for each in configurations:
            within, before = capacity_within(each, limit_ms), served.get(each.config)
            if within is not None:
                served[each.config] = _no_less(within, before) if before is not None else within
        offers = [
            PricedConfiguration(config, basis, capacity, _score(capacity, price, demand))
            for config, (capacity, basis) in served.items()
        ]
        offers.sort(key=lambda offer: offer.surely_usd_per_million)
        curve.append(WithinLimit(limit_ms, tuple(offers)))
    return tuple(curve)


def possibly_cheapest(
    configurations: Sequence[MeasuredConfigurationLevels], limits_ms: Sequence[float]
) -> list[MeasuredConfigurationLevels]:
    """Return the configurations that may be the cheapest within a limit, in their order.

    The others cannot serve as much, whatever their levels show, as one of these surely does. Of
    thousands of configurations, few are left to be estimated.
    """
    kept = set[int]()
    for limit_ms in limits_ms:
        surely_per_second = 0.0
        most = [_most_per_second(each, limit_ms) for each in configurations]
        for number in sorted(range(len(most)), key=most.__getitem__, reverse=True):
            if most[number] < surely_per_second:
                break
            kept.add(number)
            within = capacity_within(configurations[number], limit_ms)
            if within is not None:
                surely_per_second = max(surely_per_second, within[0].low)
    return [configurations[number] for number in sorted(kept)]


def _most_per_second(configuration: MeasuredConfigurationLevels, limit_ms: float) -> float:
    """Return an upper bound of the capacity that `capacity_within` estimates."""
    saturated = configuration.saturation * configuration.demand_per_second
    most = max(HIGHEST_SHARE * saturated, floor_per_second(saturated))
    capacities = [(ms, each.capacity_per_second) for ms, each in configuration.certified]
    longer = next((capacity for ms, capacity in capacities if ms >= limit_ms), most)
    shorter = max((capacity for ms, capacity in capacities if ms <= limit_ms), default=0.0)
    return max(min(most, longer), shorter)


def recommended_first(
    curve: Sequence[WithinLimit], limit_ms: float, recommended: ServingConfig | None
) -> tuple[WithinLimit, ...]:
    """Put the study's recommendation first within its own limit.

    Other limits are compared by the cost at capacity alone; within its own, the study has compared
    fleets, and by confirmed figures.
    """
    return tuple(
        replace(within, offers=tuple(sorted(within.offers, key=lambda o: o.config != recommended)))
        if within.limit_ms == limit_ms
        else within
        for within in curve
    )


def _no_less(
    within: tuple[Capacity, Basis], before: tuple[Capacity, Basis]
) -> tuple[Capacity, Basis]:
    """Raise a capacity to that within a shorter limit, where it is below."""
    (own, basis), (shorter, shorter_basis) = within, before
    if own.low >= shorter.low and own.per_second >= shorter.per_second:
        return within
    at = max(own.per_second, shorter.per_second)
    high = None if own.high is None else max(own.high, at)
    surest = basis if shorter_basis == "measured" else shorter_basis
    return Capacity(at, max(own.low, shorter.low), high), surest


def _score(capacity: Capacity, price: Price, demand: Demand) -> Score:
    return score(capacity.per_second, capacity.low, price, demand)


def usual_limits(
    configurations: Sequence[MeasuredConfigurationLevels], *own_ms: float
) -> list[float]:
    """Return limits from the lowest measured latency to twice the longest searched limit.

    Args:
        own_ms: limits that the study was searched for, which are among them.
    """
    latencies_ms = [each.least_latency_ms for each in configurations]
    least = min((latency for latency in latencies_ms if latency is not None), default=min(own_ms))
    spread = np.geomspace(min(least, *own_ms), _LONGEST * max(own_ms), _LIMITS).tolist()
    for own in own_ms:
        spread.remove(min(spread, key=lambda limit: abs(np.log(limit / own))))
    rounded = {float(f"{limit:.2g}") for limit in spread}
    return sorted(rounded | set(own_ms))


def undominated(costs: Sequence[Sequence[float]]) -> list[int]:
    """Return the numbers of the rows of costs that are on the Pareto front.

    A row is dominated where another is nowhere dearer and somewhere cheaper, or where all its
    costs are infinite.
    """
    rows = np.array(costs, dtype=float)
    return [
        number
        for number, own in enumerate(rows)
        if np.isfinite(own).any()
        and not ((rows <= own).all(axis=1) & (rows < own).any(axis=1)).any()
    ]

"""Which change of a model's configuration would save how much, by what its counters show."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import (
    Batching,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.cost import Demand, Price, replicas_for
from optimizer.measurement.counters import CounterInterval
from optimizer.measurement.estimates import NORMAL_QUANTILE
from optimizer.production.demand import ObservedDemand, observed_demand
from optimizer.production.self_check import SelfCheck, check_observation
from optimizer.production.service_times import ObservedService, observed_service
from optimizer.simulator.network import Network
from optimizer.simulator.predicted_values import PredictedLevel
from optimizer.simulator.prediction import Loads, OfferedStream, predict_capacity
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.stream_estimate import network_of_model
from optimizer.workload.streams import LatencyLimit, Payloads, Stream

PERCENTILE = 95.0
"""Of the latency that is limited and predicted."""

_SEED = 0
_REQUESTS, _EXACT_REQUESTS = 2_000, 10_000
"""Simulated for each load: of all candidates, and of the changes that are shown."""

_MODEL_SD = 0.05
"""Standard deviation of the logarithm of a real capacity around one simulated with its times."""

_DOUBLING_SD = 0.2
"""The same of the times of batches, for each doubling beyond the only size that was executed: one
size does not tell whether a model takes hardly longer for them, or in proportion."""

_DELAYS_US = (0, 1_000, 5_000, 20_000)
_LONGEST_DELAY = 0.25
"""Of the latency limit: a longer queue delay leaves no time for the execution."""

_SAME = 0.05
"""Relative difference of capacity that is no reason for a change."""

_NEW_SHARE = 0.05
"""Share of the inferences in batches that were never executed, from which they need a test."""

Concurrency = Callable[[ServingConfig], int]
"""Returns the requests that are outstanding while a configuration is saturated."""


@dataclass(frozen=True)
class Interval:
    """A figure with its interval of 95 %."""

    low: float
    value: float
    high: float


@dataclass(frozen=True)
class PredictedChange:
    """A configuration of a replica, and what is predicted of it.

    Attributes:
        name: what is changed.
        changed: whether anything is.
        capacity_per_second: of one replica within the limit; 0 where no load is within it.
        replicas: those of now, or as many as the peak of the demand needs, by the lower bound of
            the capacity; None where no number suffices.
        replicas_at_mean: as many as its mean needs, likewise.
        p95_ms: latency in the server with the peak's demand divided among these replicas; None
            where no number suffices.
        usd_per_hour: of these replicas; None without a price.
        test_first: what a load test has to show before it is deployed, in sentences.
    """

    name: str
    serving: ModelServing
    changed: bool
    capacity_per_second: Interval
    replicas: int | None
    replicas_at_mean: int | None
    p95_ms: Interval | None
    usd_per_hour: float | None
    test_first: tuple[str, ...]


@dataclass(frozen=True)
class Learnt:
    """What the counters of a model's replicas show.

    Attributes:
        stream: the requests to one replica; without a given limit, that is the p95 of now.
        serving: how a replica serves the model.
        largest: deployed max_batch_size, which no candidate exceeds: whether the model takes larger
            batches, no counter tells.
    """

    demand: ObservedDemand
    service: ObservedService
    check: SelfCheck
    replicas: int
    stream: Stream
    serving: ModelServing
    largest: int


def learn(
    serving: ModelServing,
    payloads: Payloads,
    intervals: Sequence[CounterInterval],
    limit_ms: float | None = None,
) -> Learnt:
    """Return what counters show, and whether a simulation with it reproduces them.

    Args:
        limit_ms: of the 95th percentile of the latency in the server; None is that of now, as it is
            simulated.
    """
    demand = observed_demand(intervals)
    request_size = max(1, round(demand.request_size))
    current = serving
    if serving.batching is None:
        current = replace(serving, max_batch_size=request_size)
    service = observed_service(current, intervals)
    stream = Stream(
        name=serving.name,
        target=serving.name,
        arrivals=demand.arrivals,
        payloads=payloads,
        limit=LatencyLimit(PERCENTILE, limit_ms or math.inf),
        demand_per_second=demand.mean_per_second,
        batch_size=request_size,
    )
    check = check_observation(current, stream, intervals, demand, service)
    return Learnt(
        demand,
        service,
        check,
        len({each.replica for each in intervals}),
        replace(stream, limit=LatencyLimit(PERCENTILE, limit_ms or check.p95_ms)),
        current,
        serving.max_batch_size,
    )


@dataclass(frozen=True)
class Advice:
    """What to change of a model in production.

    Attributes:
        current: the configuration as it is, with the replicas that there are.
        needed: the same with the replicas that it needs.
        alone: the best value of each setting, with the others as they are.
        best: the best of all combinations; `current` where no other is clearly better.
    """

    learnt: Learnt
    price: Price | None
    current: PredictedChange
    needed: PredictedChange
    alone: tuple[PredictedChange, ...]
    best: PredictedChange


def advise(learnt: Learnt, concurrency: Concurrency, price: Price | None = None) -> Advice:
    """Return what is predicted of other configurations, and the best of them."""
    predictions = Predictions(learnt, concurrency, price)
    alone, best = predictions.best()
    needed = predictions.exact(learnt.serving)
    current = predictions.exact(learnt.serving, learnt.replicas)
    return Advice(learnt, price, current, needed, alone, best)


class Predictions:
    """Predicts candidates: all of them roughly, and those that are shown exactly."""

    def __init__(self, learnt: Learnt, concurrency: Concurrency, price: Price | None) -> None:
        self._learnt, self._concurrency, self._price = learnt, concurrency, price
        stream = learnt.stream
        self._offered = OfferedStream(stream.arrivals, stream.limit)
        self._curves: dict[tuple[object, ...], ServiceCurve] = {}

    def best(self) -> tuple[tuple[PredictedChange, ...], PredictedChange]:
        """Return the best value of each setting alone, and the best combination."""
        current = self._learnt.serving
        models = dict.fromkeys(candidates(self._learnt))
        rough = {model: self._capacity(model, 1.0, _REQUESTS) for model in models}
        chosen = []
        for name in _SETTINGS:
            own = {m: rate for m, rate in rough.items() if {*changes(current, m)} <= {name}}
            chosen.append(preferred(own, current))
        alone = dict.fromkeys(model for model in chosen if model != current)
        return (
            tuple(self.exact(model) for model in alone),
            self.exact(preferred(rough, current)),
        )

    def exact(self, model: ModelServing, replicas: int | None = None) -> PredictedChange:
        """Predict a change with intervals.

        Args:
            replicas: that there are; None is as many as the demand needs.
        """
        demand, current = self._learnt.demand, self._learnt.serving
        capacity = self.capacity(model)
        peak, mean = (
            replicas_for(Demand(rate), capacity.low) if capacity.low > 0 else None
            for rate in (demand.peak_per_second, demand.mean_per_second)
        )
        among = replicas or peak
        each = demand.peak_per_second / (among or 1)
        return PredictedChange(
            name=", ".join(changes(current, model).values()) or "as it is",
            serving=model,
            changed=model != current,
            capacity_per_second=capacity,
            replicas=among,
            replicas_at_mean=mean,
            p95_ms=self.p95(model, each) if among else None,
            usd_per_hour=among * self._price.usd_per_hour if among and self._price else None,
            test_first=tuple(self._untested(model, each)),
        )

    def capacity(self, model: ModelServing) -> Interval:
        """Predict the requests per second of one replica within the limit."""
        value = self._capacity(model, 1.0, _EXACT_REQUESTS)
        slow = self._slowest(model, value)
        low, high = (self._capacity(model, x, _EXACT_REQUESTS) for x in (slow, 1 / slow))
        return Interval(min(low, value), value, max(value, high))

    def _slowest(self, model: ModelServing, per_second: float) -> float:
        """Return by how much the batches at a rate may take longer than predicted."""
        size = model.max_batch_size
        if per_second > 0:
            batches = self._level(model, 1.0, per_second).batches
            inferences = {own: own * count for own, count in batches.items()}
            size = math.ceil(
                sum(own * n for own, n in inferences.items()) / sum(inferences.values())
            )
        sd = self._curve(replace(model, max_batch_size=size)).log_sd
        executed = self._learnt.service.executed_sizes
        doublings = max(0.0, math.log2(size / executed[0])) if len(executed) == 1 else 0.0
        return math.exp(NORMAL_QUANTILE * math.hypot(sd, _MODEL_SD, _DOUBLING_SD * doublings))

    def _capacity(self, model: ModelServing, slower: float, requests: int) -> float:
        concurrency = self._concurrency(ServingConfig((model,)))
        network = self._network(model, slower)
        return predict_capacity(network, (self._offered,), concurrency, _SEED, requests).per_second

    def _network(self, model: ModelServing, slower: float) -> Network:
        return network_of_model(model, self._curve(model).slower(slower), self._learnt.stream)

    def _curve(self, model: ModelServing) -> ServiceCurve:
        """Return the service curve, which only instances and the largest batch decide."""
        key = (model.groups, model.max_batch_size)
        if key not in self._curves:
            self._curves[key] = self._learnt.service.curve(model)
        return self._curves[key]

    def _level(self, model: ModelServing, slower: float, per_second: float) -> PredictedLevel:
        network = self._network(model, slower)
        loads = Loads(network, (self._offered,), _EXACT_REQUESTS, _SEED)
        return loads.levels(per_second, (PERCENTILE,))[0]

    def p95(self, model: ModelServing, per_second: float) -> Interval:
        """Predict the latency in a server that gets so many requests per second."""
        slow = self._slowest(model, per_second)
        high, value, low = (
            self._level(model, factor, per_second).latency_ms(PERCENTILE)
            for factor in (slow, 1.0, 1 / slow)
        )
        return Interval(min(low, value), value, max(value, high))

    def _untested(self, model: ModelServing, per_second: float) -> Iterator[str]:
        batches, executed = self._level(model, 1.0, per_second).batches, self._learnt.service
        new = executed.share_of_new_sizes(batches)
        if new > _NEW_SHARE:
            yield (
                f"batches above {executed.largest_batch} were hardly or never executed, and would "
                f"have {new:.0%} of the inferences at the peak"
            )
        if model.instance_count != self._learnt.serving.instance_count:
            yield (
                f"{model.instance_count} instances at once: the counters tell neither how much they"
                " slow each other down nor whether they fit in memory"
            )


def preferred(capacity: Mapping[ModelServing, float], current: ModelServing) -> ModelServing:
    """Return the candidate of the highest capacity, or one nearly as good with fewer changes."""
    good = [each for each in capacity if capacity[each] >= (1 - _SAME) * max(capacity.values())]
    return min(good, key=lambda each: (len(changes(current, each)), -capacity[each]))


_SETTINGS = (
    "batching",
    "max_batch_size",
    "preferred_batch_size",
    "max_queue_delay_microseconds",
    "instance_group count",
)


def changes(current: ModelServing, model: ModelServing) -> Mapping[str, str]:
    """Return the settings that differ, and what they become, in words.

    Where the batcher is new, all its settings are one change.
    """
    then, now = _values(current), _values(model)
    differing = {
        name: f"{name} {value}"
        for name, value in now.items()
        if name in then and value != then[name]
    }
    if model.batching is not None and current.batching is None:
        own = [f"{name} {value}" for name, value in now.items() if name not in then]
        differing["batching"] = f"batching on ({', '.join(own)})"
    return {name: differing[name] for name in _SETTINGS if name in differing}


def _values(model: ModelServing) -> Mapping[str, object]:
    values: dict[str, object] = {
        "batching": "off" if model.batching is None else "on",
        "instance_group count": model.instance_count,
    }
    if model.batching is not None:
        values["max_batch_size"] = model.max_batch_size
        values["preferred_batch_size"] = [*model.batching.preferred_batch_sizes] or "none"
        values["max_queue_delay_microseconds"] = model.batching.max_queue_delay_us
    return values


def candidates(learnt: Learnt) -> Iterator[ModelServing]:
    """Yield the configurations that are predicted, the current one first."""
    yield learnt.serving
    size = learnt.stream.batch_size
    for model in _instance_counts(learnt.serving):
        yield replace(model, batching=None, max_batch_size=size)
        if learnt.largest > size:
            yield from _batched(replace(model, max_batch_size=learnt.largest), learnt.stream)


def _instance_counts(current: ModelServing) -> Iterator[ModelServing]:
    if len(current.groups) > 1:
        yield current
        return
    [group] = current.groups
    now = group.count
    for count in sorted({max(1, now // 2), now, now + 1, 2 * now}):
        yield replace(current, groups=(replace(group, count=count),))


def _batched(model: ModelServing, stream: Stream) -> Iterator[ModelServing]:
    now = model.batching or Batching()
    delays = {now.max_queue_delay_us} | {
        us for us in _DELAYS_US if us / 1e3 <= _LONGEST_DELAY * stream.limit.latency_ms
    }
    size, largest = stream.batch_size, model.max_batch_size
    powers = [1 << n for n in range(1, largest.bit_length())]
    for most in sorted({largest, *(n for n in powers if n > size)}):
        sizes = {now.preferred_batch_sizes, (), (most // 2,)}
        for preferred_sizes in sorted(each for each in sizes if max(each, default=1) <= most):
            for delay in sorted(delays):
                batching = Batching(preferred_sizes, delay, now.queue_policy)
                yield replace(model, max_batch_size=most, batching=batching)

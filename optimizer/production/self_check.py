"""The self-check: a simulation of what was observed, beside what was observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from optimizer.configuration.serving_config import ModelServing
from optimizer.measurement.counters import (
    CounterInterval,
    by_replica,
    joined_split,
    requests_per_second,
)
from optimizer.measurement.level import ServerSplit
from optimizer.production.demand import ObservedDemand, recent, trace_of
from optimizer.production.service_times import ObservedService
from optimizer.simulator.predicted_values import PredictedLevel
from optimizer.simulator.prediction import Loads, OfferedStream
from optimizer.simulator.stream_estimate import network_of_model
from optimizer.workload.streams import LatencyLimit, Stream

_SEED = 0
_BLOCKS = 10
_ERRORS = 2.0
"""Standard errors of an observed mean that a simulation of the truth may be off by."""


@dataclass(frozen=True)
class CheckedFigure:
    """One figure as observed and as simulated.

    Attributes:
        tolerance: largest difference that counts as agreement.
    """

    name: str
    unit: str
    observed: float
    simulated: float
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether the simulation reproduces the figure."""
        return abs(self.observed - self.simulated) <= self.tolerance


@dataclass(frozen=True)
class SelfCheck:
    """All replicas as observed and as simulated.

    Attributes:
        p95_ms: latency in the server as simulated, over all replicas.
        saturated: whether the replicas had as much load as they can serve.
    """

    figures: tuple[CheckedFigure, ...]
    p95_ms: float
    saturated: bool

    @property
    def trusted(self) -> bool:
        """Whether the simulation reproduces what was observed."""
        return not self.saturated and all(each.agrees for each in self.figures)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why predictions are not to be trusted, in sentences."""
        reasons = [_REASONS[each.name] for each in self.figures if not each.agrees]
        if self.saturated:
            reasons.insert(
                0,
                "the replicas were saturated: counters show what was answered, and not how much "
                "was demanded",
            )
        return tuple(dict.fromkeys(reasons))


_QUEUE, _BATCH, _RATE, _BUSY = "mean queue time", "mean batch", "throughput", "utilisation"

_REASONS: Mapping[str, str] = {
    _QUEUE: (
        "requests waited longer or shorter than simulated: arrivals may come in bursts within one "
        "interval (observe with a shorter --every), requests of different shapes may not be "
        "batched together, or other processes may use the machine"
    ),
    _BATCH: (
        "batches formed otherwise than simulated: shapes of requests may differ, clients may send "
        "batches of several sizes, or arrivals may come in bursts within one interval"
    ),
    _RATE: "the simulated server does not answer as many requests as the real one",
    _BUSY: "instances were busy for another share of the time than simulated",
}


def check_observation(
    serving: ModelServing,
    stream: Stream,
    intervals: Sequence[CounterInterval],
    demand: ObservedDemand,
    service: ObservedService,
) -> SelfCheck:
    """Simulate each replica under its own arrivals, as counted in each interval."""
    network = network_of_model(serving, service.curve(serving), stream)
    kept, loads, rates = list[CounterInterval](), list[Loads](), list[float]()
    for own in map(recent, by_replica(intervals)):
        if requests := sum(each.split.requests for each in own):
            trace = trace_of(own, demand.dispersion)
            offered = OfferedStream(trace, LatencyLimit(95.0, math.inf))
            loads.append(Loads(network, (offered,), requests, _SEED))
            rates.append(requests_per_second(own))
            kept += own
    simulated = _SimulatedReplicas(loads, rates)
    split, rate = joined_split(kept), sum(rates)
    busy = utilisation(split, sum(each.seconds for each in kept), serving)
    return SelfCheck(
        (
            _queue(kept, split, simulated),
            _batch(kept, split, simulated),
            CheckedFigure(_RATE, "requests/s", rate, simulated.achieved_per_second, 0.05 * rate),
            CheckedFigure(
                _BUSY,
                "",
                busy,
                simulated.mean(lambda level: level.utilisation),
                max(0.1 * busy, 0.02),
            ),
        ),
        simulated.p95_ms,
        saturated=busy > 0.97 or simulated.achieved_per_second < 0.97 * rate,
    )


@dataclass(frozen=True)
class _SimulatedReplicas:
    """The replicas as simulated, each at its observed rate."""

    loads: Sequence[Loads]
    rates: Sequence[float]

    @cached_property
    def levels(self) -> Sequence[PredictedLevel]:
        return [
            level
            for loads, rate in zip(self.loads, self.rates, strict=True)
            for level in loads.levels(rate, (95.0,))
        ]

    @property
    def achieved_per_second(self) -> float:
        return float(sum(level.achieved_per_second for level in self.levels))

    @property
    def p95_ms(self) -> float:
        latencies = [
            each
            for loads, rate in zip(self.loads, self.rates, strict=True)
            for each in loads.latencies_ms(rate)
        ]
        return float(np.percentile(np.concatenate(latencies), 95))

    def mean(self, figure: Callable[[PredictedLevel], float]) -> float:
        """Return the mean of a figure over the replicas, weighted by their rates."""
        return float(np.average([figure(level) for level in self.levels], weights=self.rates))


def _queue(
    observed: Sequence[CounterInterval], split: ServerSplit, simulated: _SimulatedReplicas
) -> CheckedFigure:
    error = _standard_error(observed, lambda own: own.queue_ms)
    return CheckedFigure(
        _QUEUE,
        "ms",
        split.queue_ms,
        simulated.mean(lambda level: level.mean_queue_ms),
        max(0.2 * split.queue_ms, 0.05 * split.compute_ms, _ERRORS * error),
    )


def _batch(
    observed: Sequence[CounterInterval], split: ServerSplit, simulated: _SimulatedReplicas
) -> CheckedFigure:
    mean_batch = split.inferences / split.executions
    error = _standard_error(observed, lambda own: own.inferences / max(own.executions, 1))
    return CheckedFigure(
        _BATCH,
        "inferences",
        mean_batch,
        simulated.mean(lambda level: level.bottleneck.mean_batch),
        max(0.1 * mean_batch, _ERRORS * error),
    )


def utilisation(split: ServerSplit, seconds: float, serving: ModelServing) -> float:
    """Return the share of the instances' time in which they executed.

    Args:
        seconds: observed, of all replicas together.
    """
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches)
    copying_ms = split.executions * (split.compute_input_ms + split.compute_output_ms)
    available_ms = 1e3 * serving.instance_count * seconds
    return (compute_ms + copying_ms) / available_ms


def _standard_error(
    intervals: Sequence[CounterInterval], figure: Callable[[ServerSplit], float]
) -> float:
    """Return the standard error of a mean, by the means of blocks of intervals."""
    blocks = [
        joined_split(intervals[int(n[0]) : int(n[-1]) + 1])
        for n in np.array_split(np.arange(len(intervals)), min(_BLOCKS, len(intervals)))
        if len(n)
    ]
    values = [figure(block) for block in blocks if block.requests]
    return float(np.std(values, ddof=1) / math.sqrt(len(values))) if len(values) > 2 else math.inf

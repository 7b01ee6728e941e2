"""The self-check: a simulation of what was observed, beside what was observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import ModelServing
from optimizer.measurement.counters import CounterInterval, joined_split
from optimizer.measurement.level import ServerSplit
from optimizer.production.demand import ObservedDemand, by_replica, recent, trace_of
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
    observed: list[tuple[ServerSplit, float]] = []
    simulated: list[PredictedLevel] = []
    latencies: list[NDArray[np.float64]] = []
    kept: list[CounterInterval] = []
    for own in map(recent, by_replica(intervals)):
        split, seconds = joined_split(own), sum(each.seconds for each in own)
        if not split.requests:
            continue
        trace = trace_of(own, demand.dispersion)
        loads = Loads(
            network,
            (OfferedStream(trace, LatencyLimit(95.0, math.inf)),),
            split.requests,
            _SEED,
        )
        rate = split.requests / seconds
        simulated += loads.levels(rate, (95.0,))
        latencies += loads.latencies_ms(rate)
        observed.append((split, rate))
        kept += own
    weights = np.array([rate for _, rate in observed])
    share = weights / weights.sum()

    def pooled(figure: Callable[[PredictedLevel], float]) -> float:
        return float(share @ [figure(level) for level in simulated])

    split = joined_split(kept)
    rate = float(weights.sum())
    achieved = float(sum(level.achieved_per_second for level in simulated))
    mean_batch = split.inferences / split.executions
    executions_ms = split.compute_ms
    queue_error = _standard_error(kept, lambda own: own.queue_ms)
    batch_error = _standard_error(kept, lambda own: own.inferences / max(own.executions, 1))
    busy = utilisation(kept, serving)
    figures = (
        CheckedFigure(
            _QUEUE,
            "ms",
            split.queue_ms,
            pooled(lambda level: level.mean_queue_ms),
            max(0.2 * split.queue_ms, 0.05 * executions_ms, _ERRORS * queue_error),
        ),
        CheckedFigure(
            _BATCH,
            "inferences",
            mean_batch,
            pooled(lambda level: level.bottleneck.mean_batch),
            max(0.1 * mean_batch, _ERRORS * batch_error),
        ),
        CheckedFigure(_RATE, "requests/s", rate, achieved, 0.05 * rate),
        CheckedFigure(
            _BUSY, "", busy, pooled(lambda level: level.utilisation), max(0.1 * busy, 0.02)
        ),
    )
    return SelfCheck(
        figures,
        float(np.percentile(np.concatenate(latencies), 95)),
        saturated=busy > 0.97 or achieved < 0.97 * rate,
    )


def utilisation(intervals: Sequence[CounterInterval], serving: ModelServing) -> float:
    """Return the share of the instances' time in which they executed."""
    split = joined_split(intervals)
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches)
    copying_ms = split.executions * (split.compute_input_ms + split.compute_output_ms)
    available_ms = 1e3 * serving.instance_count * sum(each.seconds for each in intervals)
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

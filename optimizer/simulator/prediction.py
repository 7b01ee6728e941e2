"""Prediction of saturation, load levels and capacity of one model that serves one stream.

The same seed gives the same prediction. All loads of one capacity have the same arrivals, faster or
slower, and the same noise, so that they differ by the load alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optimizer.measurement.level import HIGHEST_SHARE, floor_per_second
from optimizer.simulator.batcher import (
    ONE_SHAPE,
    Scheduler,
    Shapes,
    Simulation,
    closed_loop,
    draw,
    histogram,
    open_loop,
)
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.arrivals import ArrivalPattern, arrivals_of
from optimizer.workload.streams import LatencyLimit

_WARMUP_SHARE = 0.1
"""Share of a simulation's requests that are warm-up and do not count."""

_MAX_STEPS = 8


@dataclass(frozen=True)
class Serving:
    """A model that serves one stream; `shapes` are those of the stream's requests."""

    scheduler: Scheduler
    curve: ServiceCurve
    shapes: Shapes = ONE_SHAPE


@dataclass(frozen=True)
class PredictedSaturation:
    """Prediction for a closed loop without think time.

    Attributes:
        per_second: requests per second.
        batches: executions by their size in inferences, ascending.
    """

    per_second: float
    batches: dict[int, int]


@dataclass(frozen=True)
class PredictedLevel:
    """Prediction for independent arrivals.

    Attributes:
        achieved_per_second: rate of good replies while requests were due.
        latencies_ms: (percentile, latency) pairs, ascending, of requests that were not refused;
            infinity where all were.
        mean_queue_ms: from arrival to execution, of the same requests.
        refused_share: share of the requests that were refused.
        late_share: share of the requests that were over the given limit or refused.
        batches: executions by their size in inferences, ascending.
        utilisation: share of the instances' time that they execute.
    """

    offered_per_second: float
    achieved_per_second: float
    latencies_ms: tuple[tuple[float, float], ...]
    mean_queue_ms: float
    refused_share: float
    late_share: float
    batches: dict[int, int]
    utilisation: float

    def latency_ms(self, percentile: float) -> float:
        """Return one of the predicted percentiles. Raises KeyError for another."""
        return dict(self.latencies_ms)[percentile]

    @property
    def mean_batch(self) -> float:
        """Mean inferences of an execution; 0 where everything was refused."""
        executions = sum(self.batches.values())
        return sum(size * n for size, n in self.batches.items()) / max(1, executions)


@dataclass(frozen=True)
class PredictedCapacity:
    """The largest rate within a limit, by the rules of `optimizer.load.capacity`.

    Attributes:
        per_second: requests per second; 0 where even the floor load misses the limit.
        floor_ms: latency at the limit's percentile at the floor load.
    """

    per_second: float
    saturation: PredictedSaturation
    floor_ms: float


def predict_saturation(serving: Serving, concurrency: int, seed: int) -> PredictedSaturation:
    """Predict saturation: `concurrency` requests are kept outstanding."""
    scheduler = serving.scheduler
    filled = scheduler.instances * scheduler.most_requests
    requests = 2 * concurrency + max(1000, 40 * filled)
    rng = np.random.default_rng(seed)
    draws = draw(requests, serving.curve.spread, serving.shapes, rng)
    simulation = closed_loop(scheduler, serving.curve, concurrency, draws)
    if simulation.refused.all():
        return PredictedSaturation(0.0, {})
    # Count whole executions, from the end of one to the end of another, while all clients send.
    done = np.sort(simulation.done_ms[~simulation.refused])
    begin_ms = done[len(done) // 5]
    end_ms = done[np.searchsorted(done, simulation.arrive_ms[-1] - simulation.outside_ms)]
    completed = np.count_nonzero((done > begin_ms) & (done <= end_ms))
    counted = (simulation.execution_begin_ms >= begin_ms) & (simulation.execution_begin_ms < end_ms)
    # The noise of few executions is not 1 on average: correct the rate by its mean.
    took_ms, noise = simulation.execution_ms[counted], draws.noise[: len(counted)][counted]
    slower = took_ms.sum() / (took_ms / noise).sum()
    return PredictedSaturation(
        per_second=slower * 1e3 * completed / (end_ms - begin_ms),
        batches=histogram(simulation.execution_size[counted]),
    )


def predict_level(
    serving: Serving,
    arrivals: ArrivalPattern,
    rate_per_second: float,
    seed: int,
    requests: int = 4000,
    percentiles: tuple[float, ...] = (50.0, 95.0, 99.0),
) -> PredictedLevel:
    """Predict the level at a request rate, from about so many requests."""
    return Loads(serving, arrivals, requests, seed).level(rate_per_second, percentiles)


def predict_capacity(
    serving: Serving,
    arrivals: ArrivalPattern,
    limit: LatencyLimit,
    concurrency: int,
    seed: int,
    requests: int = 4000,
    resolution: float = 0.02,
) -> PredictedCapacity:
    """Predict the largest rate at which the limit is met.

    Args:
        concurrency: requests outstanding under saturation.
        requests: simulated for each load.
        resolution: of the rate, as a share of saturation.
    """
    saturated = predict_saturation(serving, concurrency, seed)
    loads = Loads(serving, arrivals, requests, seed)

    def log_excess(rate: float) -> float:
        latency_ms = loads.latency_ms(rate, limit.percentile)
        return math.log(latency_ms / limit.latency_ms)

    top = HIGHEST_SHARE * saturated.per_second
    floor = floor_per_second(saturated.per_second)
    at_floor = log_excess(floor)
    floor_ms = limit.latency_ms * math.exp(at_floor)
    if at_floor > 0:
        rate = 0.0
    elif floor >= top:
        rate = top
    else:
        rate = _crossing(log_excess, floor, at_floor, top, resolution * saturated.per_second)
    return PredictedCapacity(rate, saturated, floor_ms)


def _crossing(
    log_excess: Callable[[float], float], low: float, at_low: float, high: float, width: float
) -> float:
    """Return the rate up to `high` where `log_excess` crosses 0, by regula falsi (Illinois).

    An end that has stayed twice counts half, so that both close in.
    """
    at_high = log_excess(high)
    if at_high <= 0:
        return high
    stayed = 0
    for _ in range(_MAX_STEPS):
        rate = (low * at_high - high * at_low) / (at_high - at_low)
        if high - low <= width:
            return rate
        # A rate close to an end would narrow the interval little.
        rate = min(max(rate, low + width / 2), high - width / 2)
        at_rate = log_excess(rate)
        if at_rate <= 0:
            low, at_low = rate, at_rate
            at_high *= 0.5 if stayed > 0 else 1.0
            stayed = 1
        else:
            high, at_high = rate, at_rate
            at_low *= 0.5 if stayed < 0 else 1.0
            stayed = -1
    return low


class Loads:
    """Simulated levels that differ by their rate alone.

    Args:
        requests: approximate number of requests of each level.
    """

    def __init__(
        self, serving: Serving, arrivals: ArrivalPattern, requests: int, seed: int
    ) -> None:
        rng = np.random.default_rng(seed)
        due = arrivals_of(arrivals).due_seconds(1.0, float(requests), rng)
        # The mean rate is exactly the given one, not only on average.
        self._due = due * (len(due) / requests)
        self._requests = len(due)
        self._serving = serving
        draws = draw(len(self._due), serving.curve.spread, serving.shapes, rng)
        # So is the mean noise: near saturation 1 % of service time is several % of latency.
        self._draws = replace(draws, noise=draws.noise / draws.noise.mean())

    def latency_ms(self, rate_per_second: float, percentile: float) -> float:
        """Return the latency at one percentile."""
        simulation = self._simulate(rate_per_second)
        good = self._counted() & ~simulation.refused
        return _percentiles(simulation, good, (percentile,))[0]

    def latencies_ms(self, rate_per_second: float) -> NDArray[np.float64]:
        """Return the latency of every counted request, shape [requests]; infinity if refused."""
        simulation = self._simulate(rate_per_second)
        latency_ms = np.where(simulation.refused, np.inf, simulation.latency_ms)
        return latency_ms[self._counted()]

    def level(
        self,
        rate_per_second: float,
        percentiles: tuple[float, ...],
        limit_ms: float = math.inf,
    ) -> PredictedLevel:
        """Predict one level in full."""
        simulation = self._simulate(rate_per_second)
        counted = self._counted()
        good = counted & ~simulation.refused
        begin_ms = 1e3 * _WARMUP_SHARE * self._requests / rate_per_second
        end_ms = 1e3 * self._requests / rate_per_second
        done = simulation.done_ms[~simulation.refused]
        completed = np.count_nonzero((done > begin_ms) & (done <= end_ms))
        executed = _overlap(simulation, begin_ms, end_ms)
        instances = self._serving.scheduler.instances
        begun = simulation.execution_begin_ms >= begin_ms
        ordered = tuple(sorted(percentiles))
        late = simulation.refused | (simulation.latency_ms > limit_ms)
        return PredictedLevel(
            offered_per_second=rate_per_second,
            achieved_per_second=1e3 * completed / (end_ms - begin_ms),
            latencies_ms=tuple(zip(ordered, _percentiles(simulation, good, ordered), strict=True)),
            mean_queue_ms=float(simulation.queue_ms[good].mean()) if good.any() else math.inf,
            refused_share=float(simulation.refused[counted].mean()),
            late_share=float(late[counted].mean()),
            batches=histogram(simulation.execution_size[begun]),
            utilisation=executed / (instances * (end_ms - begin_ms)),
        )

    def _simulate(self, rate_per_second: float) -> Simulation:
        arrive_ms = self._due * (1e3 / rate_per_second)
        return open_loop(self._serving.scheduler, self._serving.curve, arrive_ms, self._draws)

    def _counted(self) -> NDArray[np.bool_]:
        return self._due >= _WARMUP_SHARE * self._requests


def _percentiles(
    simulation: Simulation, good: NDArray[np.bool_], percentiles: tuple[float, ...]
) -> list[float]:
    if not good.any():
        return [math.inf] * len(percentiles)
    latency_ms = simulation.latency_ms[good]
    return [float(value) for value in np.percentile(latency_ms, percentiles, method="weibull")]


def _overlap(simulation: Simulation, begin_ms: float, end_ms: float) -> float:
    """Return the execution time between `begin_ms` and `end_ms`, over all instances."""
    begin = np.maximum(simulation.execution_begin_ms, begin_ms)
    end = np.minimum(simulation.execution_begin_ms + simulation.execution_ms, end_ms)
    return float(np.maximum(end - begin, 0.0).sum())

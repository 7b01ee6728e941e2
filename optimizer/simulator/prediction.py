"""Prediction of saturation, load levels and capacity of one model or of a network of them.

The same seed gives the same prediction. All loads of one capacity have the same arrivals, faster or
slower, and the same noise, so that they differ by the load alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.measurement.level import HIGHEST_SHARE, floor_per_second
from optimizer.simulator.batcher import Simulation, histogram
from optimizer.simulator.network import Network
from optimizer.simulator.network_simulation import (
    NetworkSimulation,
    network_closed_loop,
    network_open_loop,
)
from optimizer.simulator.predicted_values import (
    PredictedBatcher,
    PredictedCapacity,
    PredictedLevel,
    PredictedSaturation,
)
from optimizer.workload.arrivals import ArrivalPattern, Bursts, arrivals_of
from optimizer.workload.streams import LatencyLimit

_WARMUP_SHARE = 0.1
"""Share of a simulation's requests that are warm-up and do not count."""

_PERIODS = 1.25
"""Periods of bursts in a simulation at the highest rate, with its warm-up."""

_MAX_STEPS = 8

_REFUSED_OVER_LIMIT = 10.0
"""Latency over the limit of a refused request: finite, so that loads can be interpolated."""

_MOST_HITS = 19
"""Hits for each executed request, up to which a simulation has as many executed requests."""


@dataclass(frozen=True)
class OfferedStream:
    """The requests of one source of a network, and the limit of their latency.

    Attributes:
        share: of all requests.
    """

    arrivals: ArrivalPattern
    limit: LatencyLimit
    share: float = 1.0


def predict_saturation(
    network: Network, concurrency: int, seed: int, mix: Sequence[float] = (1.0,)
) -> PredictedSaturation:
    """Predict saturation: `concurrency` requests are kept outstanding.

    Args:
        mix: share of each source.
    """
    schedulers = [batcher.scheduler for batcher in network.batchers]
    filled = max(each.instances * each.most_requests for each in schedulers)
    executed = network.executed_share(mix)
    requests = 2 * concurrency + _with_hits(max(1000, 40 * filled), executed)
    rng = np.random.default_rng(seed)
    sources = np.zeros(requests, dtype=np.int64)
    if len(mix) > 1:
        sources = rng.choice(len(mix), size=requests, p=np.array(mix) / sum(mix))
    draws = network.draw(sources, rng)
    simulation = network_closed_loop(network, concurrency, draws)
    if simulation.refused.all():
        return PredictedSaturation(0.0, batchers=_batchers(network, simulation, 0.0, math.inf))
    # Count whole executions, from the end of one to the end of another, while all clients send.
    done = np.sort(simulation.done_ms[~simulation.refused])
    begin_ms = done[len(done) // 5]
    end_ms = done[np.searchsorted(done, simulation.arrive_ms[-1] - simulation.outside_ms)]
    completed = np.count_nonzero((done > begin_ms) & (done <= end_ms))
    batchers = _batchers(network, simulation, begin_ms, end_ms)
    busiest = int(np.argmax([each.utilisation for each in batchers]))
    # The noise of few executions is not 1 on average: correct the rate by its mean.
    own = simulation.batchers[busiest]
    counted = (own.execution_begin_ms >= begin_ms) & (own.execution_begin_ms < end_ms)
    took_ms, noise = own.execution_ms[counted], draws.noise[busiest][: len(counted)][counted]
    slower = took_ms.sum() / (took_ms / noise).sum() if counted.any() else 1.0
    rate = slower * 1e3 * completed / (end_ms - begin_ms)
    return PredictedSaturation(min(rate, network.most_per_second), batchers=batchers)


def _with_hits(requests: int, executed_share: float) -> int:
    """Return the number of requests of which so many are executed."""
    return round(requests / max(executed_share, 1 / (1 + _MOST_HITS)))


def predict_level(
    network: Network,
    arrivals: ArrivalPattern,
    rate_per_second: float,
    seed: int,
    requests: int = 4000,
    percentiles: tuple[float, ...] = (50.0, 95.0, 99.0),
) -> PredictedLevel:
    """Predict the level of a single source at a request rate, from about so many requests."""
    stream = OfferedStream(arrivals, LatencyLimit(50.0, math.inf))
    loads = Loads(network, (stream,), requests, seed, rate_per_second)
    return loads.levels(rate_per_second, percentiles)[0]


def predict_capacity(
    network: Network,
    streams: Sequence[OfferedStream],
    concurrency: int,
    seed: int,
    requests: int = 4000,
    resolution: float = 0.02,
) -> PredictedCapacity:
    """Predict the largest rate of all sources together at which every limit is met.

    Args:
        streams: of each source.
        concurrency: requests outstanding under saturation.
        requests: simulated for each load.
        resolution: of the rate, as a share of saturation.
    """
    saturated = predict_saturation(network, concurrency, seed, [each.share for each in streams])
    loads = Loads(network, streams, requests, seed, saturated.per_second)

    top = HIGHEST_SHARE * saturated.per_second
    floor = floor_per_second(saturated.per_second)
    at_floor = loads.log_excess(floor)
    if at_floor > 0:
        rate = 0.0
    elif floor >= top:
        rate = top
    else:
        rate = crossing(loads.log_excess, floor, at_floor, top, resolution * saturated.per_second)
    return PredictedCapacity(rate, saturated, at_floor)


def crossing(
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
        streams: of each source of the network; their bursts come together.
        requests: approximate number of requests of each level that are executed; more where bursts
            need them.
        highest_per_second: rate up to which levels have a whole period of bursts.
    """

    def __init__(
        self,
        network: Network,
        streams: Sequence[OfferedStream],
        requests: int,
        seed: int,
        highest_per_second: float = 0.0,
    ) -> None:
        rng = np.random.default_rng(seed)
        total = sum(stream.share for stream in streams)
        self._shares = [stream.share / total for stream in streams]
        requests = _with_hits(requests, network.executed_share(self._shares))
        self._bursts = next(
            (each.arrivals for each in streams if isinstance(each.arrivals, Bursts)), None
        )
        if self._bursts is not None:
            periods = _PERIODS * self._bursts.period_seconds * highest_per_second
            requests = max(requests, math.ceil(periods))
        pairs = zip(streams, self._shares, strict=True)
        own = [_due(stream.arrivals, requests, share, rng) for stream, share in pairs]
        self._end = min(len(due) / share for due, share in zip(own, self._shares, strict=True))
        source = np.repeat(np.arange(len(own)), [len(due) for due in own])
        joined = np.concatenate(own)
        order = np.argsort(joined, kind="stable")
        order = order[joined[order] < self._end]
        self._due, self._source = joined[order], source[order]
        self._network, self._streams = network, streams
        # Near saturation 1 % of service time is several % of latency.
        self._draws = network.draw(self._source, rng).with_mean_noise()

    def latencies_over_limits(self, rate_per_second: float) -> list[float]:
        """Return the latency at the limit's percentile over the limit, of each source."""
        simulation, counted = self._simulate(rate_per_second), self._counted(rate_per_second)
        return [
            self._latency_over_limit(simulation, counted & (self._source == n), each.limit)
            for n, each in enumerate(self._streams)
        ]

    @staticmethod
    def _latency_over_limit(
        simulation: NetworkSimulation, counted: NDArray[np.bool_], limit: LatencyLimit
    ) -> float:
        """Return the percentile over the limit; a refused request misses it, as in a load test."""
        if not counted.any():
            return math.inf
        relative = simulation.latency_ms[counted] / limit.latency_ms
        relative[simulation.refused[counted]] = _REFUSED_OVER_LIMIT
        return float(np.percentile(relative, limit.percentile, method="weibull"))

    def log_excess(self, rate_per_second: float) -> float:
        """Return the logarithm of the latency over the limit, of the worst source."""
        return math.log(max(self.latencies_over_limits(rate_per_second)))

    def latencies_ms(self, rate_per_second: float) -> list[NDArray[np.float64]]:
        """Return the latency of each source's counted requests; infinity if refused."""
        simulation, counted = self._simulate(rate_per_second), self._counted(rate_per_second)
        latency_ms = np.where(simulation.refused, np.inf, simulation.latency_ms)
        sources = range(len(self._shares))
        return [latency_ms[counted & (self._source == n)] for n in sources]

    def levels(
        self, rate_per_second: float, percentiles: tuple[float, ...]
    ) -> list[PredictedLevel]:
        """Predict the level of each source in full, at a rate of all together."""
        simulation = self._simulate(rate_per_second)
        begin_ms, end_ms = self._window_ms(rate_per_second)
        all_counted = self._counted(rate_per_second)
        batchers = _batchers(self._network, simulation, begin_ms, end_ms)
        visits = self._network.visits
        ordered = tuple(sorted(percentiles))
        levels = []
        for n, share in enumerate(self._shares):
            own = self._source == n
            good, counted = own & ~simulation.refused, own & all_counted
            done = simulation.done_ms[good]
            completed = np.count_nonzero((done > begin_ms) & (done <= end_ms))
            latencies_ms = _percentiles(simulation, good & counted, ordered)
            limit_ms = self._streams[n].limit.latency_ms
            late = simulation.refused | (simulation.latency_ms > limit_ms)
            levels.append(
                PredictedLevel(
                    offered_per_second=share * rate_per_second,
                    achieved_per_second=1e3 * completed / (end_ms - begin_ms),
                    latencies_ms=tuple(zip(ordered, latencies_ms, strict=True)),
                    mean_queue_ms=_queue_ms(batchers, visits[n]) if good.any() else math.inf,
                    refused_share=float(simulation.refused[counted].mean()),
                    late_share=float(late[counted].mean()),
                    batchers=batchers,
                )
            )
        return levels

    def _simulate(self, rate_per_second: float) -> NetworkSimulation:
        arrive_ms = self._arrive_ms(self._due, rate_per_second)
        return network_open_loop(self._network, arrive_ms, self._draws)

    def _arrive_ms(self, due: NDArray[np.float64], rate_per_second: float) -> NDArray[np.float64]:
        """Return when requests arrive; without bursts in proportion to when they are due."""
        if self._bursts is None:
            return due * (1e3 / rate_per_second)
        # The level begins with a quiet time, in which the queues are empty anyway.
        return 1e3 * self._bursts.shifted(due / rate_per_second, self._bursts.burst_seconds)

    def _counted(self, rate_per_second: float) -> NDArray[np.bool_]:
        """Select the requests after the warm-up, of whole periods where they come in bursts."""
        if self._bursts is None:
            return self._due >= _WARMUP_SHARE * self._end
        begin_ms, end_ms = self._window_ms(rate_per_second)
        arrive_ms = self._arrive_ms(self._due, rate_per_second)
        return (arrive_ms >= begin_ms) & (arrive_ms < end_ms)

    def _window_ms(self, rate_per_second: float) -> tuple[float, float]:
        """Return the time of the requests that count."""
        begin_ms = 1e3 * _WARMUP_SHARE * self._end / rate_per_second
        end_ms = 1e3 * self._end / rate_per_second
        if self._bursts is None:
            return begin_ms, end_ms
        end_ms = float(self._arrive_ms(np.array([self._end]), rate_per_second)[0])
        period_ms = 1e3 * self._bursts.period_seconds
        periods = math.floor((end_ms - begin_ms) / period_ms)
        return (begin_ms, begin_ms + periods * period_ms) if periods else (begin_ms, end_ms)


def _queue_ms(batchers: Sequence[PredictedBatcher], visits: Sequence[float]) -> float:
    """Return the mean queue time of a request, by its mean number of visits to each model."""
    return sum(n * each.mean_queue_ms for n, each in zip(visits, batchers, strict=True))


def _due(
    arrivals: ArrivalPattern, requests: int, share: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return when the requests of a stream with this share of all are due.

    Times are in units of one over the rate of all streams, and without bursts. The stream's mean
    rate is exactly its share, not only on average.
    """
    own = requests * share
    steady = arrivals_of("poisson" if isinstance(arrivals, Bursts) else arrivals)
    due = steady.due_seconds(1.0, own, rng)
    return np.asarray(due * (len(due) / own) / share)


def _batchers(
    network: Network, simulation: NetworkSimulation, begin_ms: float, end_ms: float
) -> tuple[PredictedBatcher, ...]:
    """Return the prediction for each model between two times."""
    result = []
    for batcher, own in zip(network.batchers, simulation.batchers, strict=True):
        begun = (own.execution_begin_ms >= begin_ms) & (own.execution_begin_ms < end_ms)
        queued = ~own.refused & (own.arrive_ms >= begin_ms) & (own.arrive_ms < end_ms)
        occupied = _overlap(own, begin_ms, end_ms) / (end_ms - begin_ms)
        result.append(
            PredictedBatcher(
                batcher.name,
                histogram(own.execution_size[begun]),
                occupied / batcher.scheduler.instances,
                float(own.queue_ms[queued].mean()) if queued.any() else 0.0,
            )
        )
    return tuple(result)


def _percentiles(
    simulation: NetworkSimulation, good: NDArray[np.bool_], percentiles: tuple[float, ...]
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

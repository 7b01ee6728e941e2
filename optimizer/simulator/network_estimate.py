"""Throughput of a network of batchers in closed form, to rank more points than can be simulated.

At a rate, every batcher forms the smallest batches with which its instances keep up. Then a request
waits for a share of an execution that is their utilisation, and is in the next. What executes at
the same time counts by its mean. Neither queue delays nor preferred batch sizes count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.network import Network
from optimizer.simulator.prediction import OfferedStream
from optimizer.simulator.service_curve import ServiceCurve

Floats = NDArray[np.float64]

_HALVINGS = 14
_LOG_RANGE = 8.0
_ROUNDS = 4
"""Bisections of a rate, the range of its logarithm, and rounds in which slowdowns settle."""


@dataclass(frozen=True)
class BatcherTimes:
    """How long the batches of a model take at several points.

    Attributes:
        requests: sizes of batches, in requests, shape [points, sizes].
        execution_ms: of these, while all instances are busy.
        instances: shape [points], as the next two.
        least_ms: of one request, on an instance that was idle.
        log_sd: standard deviation of the logarithm of all times.
    """

    requests: Floats
    execution_ms: Floats
    instances: Floats
    least_ms: Floats
    log_sd: Floats

    @classmethod
    def of(
        cls, curves: Sequence[ServiceCurve], largest: Sequence[int], request_size: int
    ) -> BatcherTimes:
        """Return the times of curves up to their largest batches, in inferences."""
        most = max(len(curve.batch_sizes) for curve in curves)
        requests, execution_ms = np.empty((2, len(curves), most))
        for n, (curve, size) in enumerate(zip(curves, largest, strict=True)):
            sizes = np.maximum(np.array(curve.batch_sizes) // request_size, 1)
            sizes = np.minimum(sizes, max(1, size // request_size))
            sizes = np.pad(sizes, (0, most - len(sizes)), mode="edge")
            requests[n] = sizes
            execution_ms[n] = np.interp(sizes * request_size, curve.batch_sizes, curve.execution_ms)
        return cls(
            requests,
            execution_ms,
            np.array([float(len(curve.busy_factors)) for curve in curves]),
            execution_ms[:, 0] * [curve.busy_factors[0] for curve in curves]
            + [curve.wake_ms for curve in curves],
            np.array([curve.log_sd for curve in curves]),
        )

    def at(self, rows: NDArray[np.int64]) -> BatcherTimes:
        """Return the times of some of the points."""
        return BatcherTimes(
            self.requests[rows],
            self.execution_ms[rows],
            self.instances[rows],
            self.least_ms[rows],
            self.log_sd[rows],
        )


@dataclass(frozen=True)
class ClosedForm:
    """Estimates of several points, arrays of shape [points].

    Attributes:
        saturation, capacity: requests per second of all streams; the capacity is 0 where even an
            almost idle network misses a limit.
        floor_log_excess: logarithm of latency over limit in an almost idle network.
        log_sd: standard deviation of the logarithm of the bottleneck's times.
    """

    saturation: Floats
    capacity: Floats
    floor_log_excess: Floats
    log_sd: Floats


def closed_form(
    batchers: Sequence[BatcherTimes], network: Network, streams: Sequence[OfferedStream]
) -> ClosedForm:
    """Estimate points of a space, which differ in the times of their batches.

    Args:
        batchers: of each batcher of the network.
        network: of any of the points: its calls and contention are those of all.
        streams: of each source.
    """
    estimate = _Estimate(batchers, network, streams)
    top = estimate.most_per_second
    saturation = _largest(top, lambda rate: estimate.at(rate).keeps_up)
    capacity = _largest(saturation, lambda rate: estimate.at(rate).log_excess <= 0)
    floor = estimate.floor_log_excess
    load = estimate.at(0.999 * saturation).load
    sds = np.array([own.log_sd for own in batchers])
    log_sd = np.take_along_axis(sds, load.argmax(axis=0)[None], axis=0)[0]
    return ClosedForm(saturation, np.where(floor > 0, 0.0, capacity), floor, log_sd)


def _largest(top: Floats, met: Callable[[Floats], NDArray[np.bool_]]) -> Floats:
    """Return the largest rate up to `top` at which `met` holds, by bisection of its logarithm."""
    low, high = np.log(top) - _LOG_RANGE, np.log(top)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        good = met(np.exp(middle))
        low, high = np.where(good, middle, low), np.where(good, high, middle)
    return np.asarray(np.exp(low))


@dataclass(frozen=True)
class _State:
    """The network at a rate for each point; shape [points].

    Attributes:
        load: utilisation of each batcher, shape [batchers, points].
        keeps_up: whether every batcher does.
        log_excess: largest logarithm of latency over limit of a source.
    """

    load: Floats
    keeps_up: NDArray[np.bool_]
    log_excess: Floats


class _Estimate:
    def __init__(
        self,
        batchers: Sequence[BatcherTimes],
        network: Network,
        streams: Sequence[OfferedStream],
    ) -> None:
        self._batchers, self._network, self._streams = batchers, network, streams
        self._visits = np.array(network.visits)
        self._per_request = np.array([each.share for each in streams]) @ self._visits
        count = len(batchers)
        self._pairs = np.array(network.contention.pairs or np.zeros((count, count)))

    @property
    def most_per_second(self) -> Floats:
        """Rate that no point exceeds: that of its slowest model alone."""
        rates = [
            1000 * own.instances * (own.requests / own.execution_ms).max(axis=1) / visits
            for own, visits in zip(self._batchers, self._per_request, strict=True)
            if visits > 0
        ]
        return np.asarray(np.minimum(np.min(rates, axis=0), self._network.most_per_second))

    @property
    def floor_log_excess(self) -> Floats:
        """Logarithm of latency over limit in an almost idle network."""
        return self._log_excess(np.array([own.least_ms for own in self._batchers]))

    def at(self, rate: Floats) -> _State:
        """Return the network at a rate in requests/s of all streams, shape [points]."""
        took_ms, load = self._times(rate, np.ones((len(self._batchers), len(rate))))
        for _ in range(_ROUNDS):
            busy = np.minimum(load, 1.0) * [own.instances for own in self._batchers]
            took_ms, load = self._times(rate, self._slower(busy))
        waiting = took_ms * (1 + np.minimum(load, 1.0))
        return _State(load, (load <= 1).all(axis=0), self._log_excess(waiting))

    def _times(self, rate: Floats, slower: Floats) -> tuple[Floats, Floats]:
        """Return the time of an execution (ms) and the utilisation, shape [batchers, points]."""
        took, load = np.empty((2, *slower.shape))
        # Steps come before the models that are composed of them.
        for k, own in enumerate(self._batchers):
            execution_ms = own.execution_ms * slower[k][:, None]
            for call in self._network.batchers[k].calls:
                inside = took[call.batcher] * (1 + np.minimum(load[call.batcher], 1.0))
                execution_ms = execution_ms + call.count * inside[:, None] * own.requests
            needed = rate * self._per_request[k] / 1000 / own.instances
            loads = needed[:, None] * execution_ms / own.requests
            keeps_up = loads <= 1
            chosen = np.where(keeps_up.any(axis=1), keeps_up.argmax(axis=1), loads.argmin(axis=1))
            at = chosen[:, None]
            took[k] = np.take_along_axis(execution_ms, at, axis=1)[:, 0]
            load[k] = np.take_along_axis(loads, at, axis=1)[:, 0]
        return took, load

    def _slower(self, busy: Floats) -> Floats:
        """Return the factor of each batcher's times by the mean number of busy instances."""
        return np.asarray(np.exp(self._pairs @ busy))

    def _log_excess(self, times_ms: Floats) -> Floats:
        """Return the largest logarithm of latency over limit, by the time in each batcher."""
        latency_ms = self._network.outside_ms + self._inside(times_ms)
        limits = np.array([stream.limit.latency_ms for stream in self._streams])
        return np.asarray(np.log(latency_ms / limits[:, None]).max(axis=0))

    def _inside(self, times_ms: Floats) -> Floats:
        """Return the time of each source's requests in the batchers, shape [sources, points].

        Where a response cache answers so many that the limit's percentile is one of them, none.
        """
        inside = np.zeros((len(self._streams), times_ms.shape[1]))
        for n, (source, stream) in enumerate(
            zip(self._network.sources, self._streams, strict=True)
        ):
            if source.hit_rate < stream.limit.percentile / 100:
                inside[n] = sum(call.count * times_ms[call.batcher] for call in source.calls)
        return inside

"""Simulated response of one instance of a fleet to steady loads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.instance import ServedStreams
from optimizer.simulator.prediction import Loads, crossing, predict_saturation

_SHARES = np.array(
    [0.02, 0.05, *np.arange(0.1, 0.75, 0.1), *np.arange(0.75, 0.99, 0.02), 0.985, 0.99, 0.995]
)
"""Simulated loads, as shares of saturation."""

_REQUESTS = 100_000
"""Simulated requests of each steady load."""

_CAPACITY_REQUESTS = 500_000
"""More for the capacity: near saturation queues settle slowly."""

_RESOLUTION = 0.001
"""Of the capacity, as a share of saturation; its standard error is several times as large."""

_LOWEST_SHARE = 0.1
"""Of the lowest simulated load: where that misses a limit, no lower rate is looked at."""


@dataclass(frozen=True)
class Response:
    """The response of one instance to steady loads; arrays of shape [loads].

    Attributes:
        per_second: request rate of all streams, ascending.
        limit_overshoot: latency at the limit's percentile over the limit, less 1, of the worst
            stream.
        late_share: share of the requests over their streams' limits.
        queue_ms: mean queue time.
        busy_share: utilisation of the busiest model's instances.
        saturation_per_second: highest throughput.
        most_within_per_second: highest rate at which every stream meets its limit.
    """

    per_second: NDArray[np.float64]
    limit_overshoot: NDArray[np.float64]
    late_share: NDArray[np.float64]
    queue_ms: NDArray[np.float64]
    busy_share: NDArray[np.float64]
    saturation_per_second: float
    most_within_per_second: float

    def times(self, copies: int) -> Response:
        """Return the response of several copies that share the load."""
        return replace(
            self,
            per_second=copies * self.per_second,
            saturation_per_second=copies * self.saturation_per_second,
            most_within_per_second=copies * self.most_within_per_second,
        )

    def late_share_at(self, per_second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return interpolated shares of late requests, in the shape given; 1 from saturation on."""
        return np.interp(per_second, self.per_second, self.late_share, right=1.0)


def simulate_response(served: ServedStreams, seed: int) -> Response:
    """Simulate one instance of a fleet under steady loads."""
    mix = [stream.share for stream in served.streams]
    highest = predict_saturation(served.network, served.concurrency, seed, mix).per_second
    loads = _loads(served, _REQUESTS, seed)
    rates = highest * _SHARES
    overshoot, late, queue, busy = np.array([_at(served, loads, rate) for rate in rates]).T
    within = _most_within(_loads(served, _CAPACITY_REQUESTS, seed), rates, overshoot)
    return Response(rates, overshoot, late, queue, busy, highest, within)


def _loads(served: ServedStreams, requests: int, seed: int) -> Loads:
    return Loads(served.network, served.thinned.streams, requests, seed)


def _at(served: ServedStreams, loads: Loads, rate: float) -> tuple[float, ...]:
    """Return overshoot, late share, queue time and utilisation at one rate."""
    percentiles = tuple({stream.limit.percentile for stream in served.streams})
    levels = loads.levels(rate, percentiles)
    pairs = list(zip(served.streams, levels, strict=True))
    total = sum(stream.share for stream in served.streams)
    overshoot = max(
        level.latency_ms(stream.limit.percentile) / stream.limit.latency_ms - 1
        for stream, level in pairs
    )
    late = sum(stream.share * level.late_share for stream, level in pairs) / total
    queue = sum(stream.share * level.mean_queue_ms for stream, level in pairs) / total
    return overshoot, late, queue, levels[0].utilisation


def _most_within(loads: Loads, rates: NDArray[np.float64], overshoot: NDArray[np.float64]) -> float:
    """Find the highest rate that meets every limit, near the first load that misses one."""
    missed = np.flatnonzero(overshoot > 0)
    if len(missed) == 0:
        return float(rates[-1])
    first = int(missed[0])
    low = float(rates[first - 2] if first > 1 else _LOWEST_SHARE * rates[0])
    high = float(rates[min(first + 1, len(rates) - 1)])
    at_low = loads.log_excess(low)
    if at_low > 0:
        return 0.0
    return crossing(loads.log_excess, low, at_low, high, _RESOLUTION * rates[-1])

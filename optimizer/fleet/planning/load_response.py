"""Simulated response of one instance of a fleet to steady loads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.instance import Part
from optimizer.simulator.prediction import Loads, predict_saturation

_SHARES = np.array(
    [0.02, 0.05, *np.arange(0.1, 0.75, 0.1), *np.arange(0.75, 0.99, 0.02), 0.985, 0.99, 0.995]
)
"""Simulated loads, as shares of saturation."""

_REQUESTS = 200_000
"""Simulated requests of each steady load."""

_CAPACITY_REQUESTS = 1_000_000
"""More for the capacity: near saturation queues settle slowly."""

_BISECTIONS = 7


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


def simulate_response(parts: Sequence[Part], seed: int) -> Response:
    """Simulate one instance of a fleet under steady loads."""
    highest = min(
        predict_saturation(part.serving, part.concurrency, seed).per_second / part.share
        for part in parts
    )
    loads = _loads(parts, _REQUESTS, seed)
    rates = highest * _SHARES
    overshoot, late, queue, busy = np.array([_at(parts, loads, rate) for rate in rates]).T
    within = _most_within(parts, _loads(parts, _CAPACITY_REQUESTS, seed), rates, overshoot)
    return Response(rates, overshoot, late, queue, busy, highest, within)


def _loads(parts: Sequence[Part], requests: int, seed: int) -> list[Loads]:
    return [Loads(part.serving, part.thinned, requests, seed) for part in parts]


def _at(parts: Sequence[Part], loads: Sequence[Loads], rate: float) -> tuple[float, ...]:
    """Return overshoot, late share, queue time and utilisation at one rate."""
    overshoots, late, queue, busy = [], 0.0, 0.0, []
    for part, load in zip(parts, loads, strict=True):
        limit = part.limit
        level = load.level(rate * part.share, (limit.percentile,), limit.latency_ms)
        overshoots.append(level.latency_ms(limit.percentile) / limit.latency_ms - 1)
        late += part.share * level.late_share
        queue += part.share * level.mean_queue_ms
        busy.append(level.utilisation)
    return max(overshoots), late, queue, max(busy)


def _most_within(
    parts: Sequence[Part],
    loads: Sequence[Loads],
    rates: NDArray[np.float64],
    overshoot: NDArray[np.float64],
) -> float:
    """Find the highest rate that meets every limit, by bisection around the first missed load."""
    missed = np.flatnonzero(overshoot > 0)
    if len(missed) == 0:
        return float(rates[-1])
    first = int(missed[0])
    low = float(rates[first - 2]) if first > 1 else 0.0
    high = float(rates[min(first + 1, len(rates) - 1)])
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        met = all(
            load.latency_ms(middle * part.share, part.limit.percentile) <= part.limit.latency_ms
            for part, load in zip(parts, loads, strict=True)
        )
        low, high = (middle, high) if met else (low, middle)
    return low

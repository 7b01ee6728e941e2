"""What one instance of a fleet does under steady loads, by simulation. Pure."""

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
"""Of saturation."""

_REQUESTS = 200_000
"""Of each steady load."""

_MOST_REQUESTS = 1_000_000
_HALVINGS = 7
"""The most within the limits is looked for with more: next to saturation queues settle slowly."""


@dataclass(frozen=True)
class Response:
    """What one instance does under steady loads.

    Attributes:
        per_second: requests of all streams, ascending; shape [loads], as all arrays.
        excess: latency at the limit's percentile over the limit, less 1, of the worst stream.
        late_share: of the requests, over their streams' limits.
        queue_ms: mean.
        busy_share: of the instances' time, of the busiest model.
        saturation_per_second: the most that it serves.
        most_within_per_second: the most at which every stream keeps its limit.
    """

    per_second: NDArray[np.float64]
    excess: NDArray[np.float64]
    late_share: NDArray[np.float64]
    queue_ms: NDArray[np.float64]
    busy_share: NDArray[np.float64]
    saturation_per_second: float
    most_within_per_second: float

    def times(self, copies: int) -> Response:
        """Of so many, each with its share of the load."""
        return replace(
            self,
            per_second=copies * self.per_second,
            saturation_per_second=copies * self.saturation_per_second,
            most_within_per_second=copies * self.most_within_per_second,
        )

    def late_share_at(self, per_second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Shape as given; 1 from saturation on."""
        return np.interp(per_second, self.per_second, self.late_share, right=1.0)


def simulate_response(parts: Sequence[Part], seed: int) -> Response:
    """Simulate one instance of a fleet under steady loads."""
    most = min(
        predict_saturation(part.serving, part.concurrency, seed).per_second / part.share
        for part in parts
    )
    loads = _loads(parts, _REQUESTS, seed)
    rates = most * _SHARES
    excess, late, queue, busy = np.array([_at(parts, loads, rate) for rate in rates]).T
    within = _most_within(parts, _loads(parts, _MOST_REQUESTS, seed), rates, excess)
    return Response(rates, excess, late, queue, busy, most, within)


def _loads(parts: Sequence[Part], requests: int, seed: int) -> list[Loads]:
    return [Loads(part.serving, part.thinned, requests, seed) for part in parts]


def _at(parts: Sequence[Part], loads: Sequence[Loads], rate: float) -> tuple[float, ...]:
    """Excess, late share, queueing time and busy share at one rate."""
    excess, late, queue, busy = [], 0.0, 0.0, []
    for part, load in zip(parts, loads, strict=True):
        limit = part.limit
        level = load.level(rate * part.share, (limit.percentile,), limit.latency_ms)
        excess.append(level.latency_ms(limit.percentile) / limit.latency_ms - 1)
        late += part.share * level.late_share
        queue += part.share * level.mean_queue_ms
        busy.append(level.utilisation)
    return max(excess), late, queue, max(busy)


def _most_within(
    parts: Sequence[Part],
    loads: Sequence[Loads],
    rates: NDArray[np.float64],
    excess: NDArray[np.float64],
) -> float:
    """The highest rate at which every limit is kept, by bisection around where loads miss it."""
    missed = np.flatnonzero(excess > 0)
    if len(missed) == 0:
        return float(rates[-1])
    first = int(missed[0])
    low = float(rates[first - 2]) if first > 1 else 0.0
    high = float(rates[min(first + 1, len(rates) - 1)])
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        kept = all(
            load.latency_ms(middle * part.share, part.limit.percentile) <= part.limit.latency_ms
            for part, load in zip(parts, loads, strict=True)
        )
        low, high = (middle, high) if kept else (low, middle)
    return low

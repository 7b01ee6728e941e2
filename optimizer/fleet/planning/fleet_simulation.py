"""Simulation of every instance of a fleet under its share of the load."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optimizer.fleet.planning.instance import ServedStreams
from optimizer.simulator.prediction import Loads

_REQUESTS = 1_000_000
"""Approximate number of simulated requests of a fleet; more for many instances."""

_MIN_REQUESTS_PER_INSTANCE = 5_000
"""Enough for the queue of an instance to settle."""


@dataclass(frozen=True)
class SimulatedFleet:
    """The result of a simulation of a fleet.

    Attributes:
        per_second: request rate of all streams on the whole fleet.
        requests: number of simulated requests.
        latency_ms: at the limit's percentile, of the stream nearest to its limit.
        limit_ms: of that stream.
        late_share: share of the requests over their streams' limits.
    """

    instances: int
    per_second: float
    requests: int
    latency_ms: float
    limit_ms: float
    late_share: float

    @property
    def keeps_limits(self) -> bool:
        """Whether every stream meets its limit."""
        return self.latency_ms <= self.limit_ms


@lru_cache(maxsize=32)  # a plan simulates some fleets more than once
def simulate_fleet(
    served: ServedStreams, instances: int, per_second: float, seed: int
) -> SimulatedFleet:
    """Simulate instances that independent requests reach at random.

    A random part of independent requests is independent too, so each instance draws its own.
    """
    each = per_second / instances
    seeds = np.random.SeedSequence(seed).generate_state(instances)
    requests = max(_MIN_REQUESTS_PER_INSTANCE, _REQUESTS // instances)
    thinned = served.thinned
    by_instance = [
        Loads(thinned.network, thinned.streams, requests, int(own)).latencies_ms(each)
        for own in seeds
    ]
    worst, late, counted = (0.0, 0.0, 1.0), 0.0, 0
    for stream, *own_latencies in zip(thinned.streams, *by_instance, strict=True):
        latencies, limit = np.concatenate(own_latencies), stream.limit
        latency = float(np.percentile(latencies, limit.percentile, method="weibull"))
        worst = max(worst, (latency / limit.latency_ms, latency, limit.latency_ms))
        late += stream.share * float((latencies > limit.latency_ms).mean())
        counted += len(latencies)
    _, latency_ms, limit_ms = worst
    return SimulatedFleet(instances, per_second, counted, latency_ms, limit_ms, late)

"""Every instance of a fleet simulated under its own share of the load. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from optimizer.fleet.planning.instance import Part
from optimizer.simulator.prediction import Loads

_REQUESTS = 2_000_000
"""Of a fleet, about; more where it has many instances, each of which must come to rest."""

_LEAST_REQUESTS = 5_000


@dataclass(frozen=True)
class SimulatedFleet:
    """What a simulation of a fleet came to.

    Attributes:
        per_second: requests of all streams, at the whole fleet.
        requests: that were counted.
        latency_ms: at the limit's percentile, of the stream that is worst off.
        limit_ms: of that stream.
        late_share: of the requests, over their streams' limits.
    """

    instances: int
    per_second: float
    requests: int
    latency_ms: float
    limit_ms: float
    late_share: float

    @property
    def keeps_limits(self) -> bool:
        """Whether every stream's percentile is within its limit."""
        return self.latency_ms <= self.limit_ms


@lru_cache(maxsize=32)  # one plan asks for some fleets more than once
def simulate_fleet(
    parts: tuple[Part, ...], instances: int, per_second: float, seed: int
) -> SimulatedFleet:
    """Send independent requests to instances at random, and wait for all replies.

    Requests that are sent to each of many at random are independent there as well, so each instance
    draws its own.
    """
    each = per_second / instances
    seeds = np.random.SeedSequence(seed).generate_state(instances)
    requests = max(_LEAST_REQUESTS, _REQUESTS // instances)
    worst, late, counted = (0.0, 0.0, 1.0), 0.0, 0
    for part in parts:
        rate, limit = each * part.share, part.limit
        latencies = np.concatenate(
            [
                Loads(part.serving, part.thinned, requests, int(own)).latencies_ms(rate)
                for own in seeds
            ]
        )
        found = float(np.percentile(latencies, limit.percentile, method="weibull"))
        worst = max(worst, (found / limit.latency_ms, found, limit.latency_ms))
        late += part.share * float((latencies > limit.latency_ms).mean())
        counted += len(latencies)
    _, latency_ms, limit_ms = worst
    return SimulatedFleet(instances, per_second, counted, latency_ms, limit_ms, late)

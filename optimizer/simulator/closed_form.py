"""What a way of serving would serve, in closed form: to rank more points than can be simulated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from optimizer.simulator.service_curve import ServiceCurve


@dataclass(frozen=True)
class ClosedFormEstimate:
    """What one model is expected to serve of one stream.

    Attributes:
        saturation_per_second, capacity_per_second: requests, without and within the limit; the
            capacity is 0 where even the floor load misses it.
        floor_log_excess: logarithm of latency over limit at the floor load.
    """

    saturation_per_second: float
    capacity_per_second: float
    floor_log_excess: float

    def times(self, factor: float) -> ClosedFormEstimate:
        """With all rates multiplied."""
        return ClosedFormEstimate(
            self.saturation_per_second * factor,
            self.capacity_per_second * factor,
            self.floor_log_excess,
        )


def in_closed_form(
    curve: ServiceCurve, max_batch_size: int, request_size: int, limit_ms: float
) -> ClosedFormEstimate:
    """All instances always execute the largest batch that the limit allows.

    A request waits for one execution and is in the next, so twice its time must be within the
    limit. Neither delays nor preferred sizes count.
    """
    instances = len(curve.busy_factors)
    sizes = np.arange(request_size, max_batch_size + 1, request_size)
    execution_ms = np.interp(sizes, curve.batch_sizes, curve.execution_ms)
    per_second = 1000 * instances * sizes / execution_ms / request_size
    within = 2 * execution_ms + curve.outside_ms <= limit_ms
    least_ms = float(execution_ms[0]) * curve.busy_factors[0] + curve.wake_ms + curve.outside_ms
    return ClosedFormEstimate(
        float(per_second[-1]),
        float(per_second[within].max(initial=0.0)),
        math.log(least_ms / limit_ms),
    )

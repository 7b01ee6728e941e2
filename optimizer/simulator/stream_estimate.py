"""What one model is expected to serve of one stream: in closed form, and by simulation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from optimizer.configuration.serving_config import ModelServing
from optimizer.simulator.batcher import scheduler_of, shapes_of
from optimizer.simulator.network import Network, one_batcher
from optimizer.simulator.prediction import OfferedStream, predict_capacity
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.streams import Stream

_REQUESTS = 2_000
"""Requests of each simulated load: as many as a measurement has, so that a space takes seconds."""


@dataclass(frozen=True)
class StreamEstimate:
    """Expected throughput of one model on one stream.

    Attributes:
        saturation_per_second, capacity_per_second: requests, without and within the limit; the
            capacity is 0 where even the floor load misses it.
        floor_log_excess: logarithm of latency over limit at the floor load.
    """

    saturation_per_second: float
    capacity_per_second: float
    floor_log_excess: float

    def times(self, factor: float) -> StreamEstimate:
        """Return the estimate with all rates multiplied."""
        return replace(
            self,
            saturation_per_second=self.saturation_per_second * factor,
            capacity_per_second=self.capacity_per_second * factor,
        )


def closed_form_estimate(
    curve: ServiceCurve, max_batch_size: int, request_size: int, limit_ms: float
) -> StreamEstimate:
    """Estimate without a simulation, to rank more points than can be simulated.

    All instances always execute the largest batch that the limit allows. A request waits for one
    execution and is in the next, so twice its time must be within the limit. Neither queue delays
    nor preferred batch sizes count.
    """
    instances = len(curve.busy_factors)
    sizes = np.arange(request_size, max_batch_size + 1, request_size)
    execution_ms = np.interp(sizes, curve.batch_sizes, curve.execution_ms)
    per_second = 1000 * instances * sizes / execution_ms / request_size
    within = 2 * execution_ms + curve.outside_ms <= limit_ms
    least_ms = float(execution_ms[0]) * curve.busy_factors[0] + curve.wake_ms + curve.outside_ms
    return StreamEstimate(
        float(per_second[-1]),
        float(per_second[within].max(initial=0.0)),
        math.log(least_ms / limit_ms),
    )


def simulated_estimate(
    model: ModelServing, curve: ServiceCurve, stream: Stream, concurrency: int, seed: int
) -> StreamEstimate:
    """Estimate by simulation.

    Args:
        concurrency: requests outstanding under saturation.
    """
    offered = OfferedStream(stream.arrivals, stream.limit)
    capacity = predict_capacity(
        network_of_model(model, curve, stream), (offered,), concurrency, seed, _REQUESTS
    )
    return StreamEstimate(
        capacity.saturation.per_second, capacity.per_second, capacity.floor_log_excess
    )


def network_of_model(model: ModelServing, curve: ServiceCurve, stream: Stream) -> Network:
    """Return the network of one model that serves a stream.

    Execution times are in proportion to the request length; the curve holds for the mean length.
    """
    # Where a rate limiter lets only some of the instances execute, the curve knows how many.
    scheduler = replace(scheduler_of(model, stream), instances=len(curve.busy_factors))
    lengths = shapes_of(model, stream, float)
    mean = sum(s * length for s, length in zip(lengths.shares, lengths.factors, strict=True))
    shapes = replace(lengths, factors=tuple(length / mean for length in lengths.factors))
    return one_batcher(scheduler, curve, shapes)

"""What one model served in some way is expected to serve of a stream, by simulation. Pure."""

from __future__ import annotations

import math
from dataclasses import replace

from optimizer.configuration.serving_config import ModelServing
from optimizer.simulator.batcher import Shapes, scheduler_of, shapes_of
from optimizer.simulator.closed_form import ClosedFormEstimate
from optimizer.simulator.prediction import Serving, capacity
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.streams import Stream

_REQUESTS = 2_000
"""Of each load that is tried: as many as a measurement has, so that a space takes seconds."""


def simulated(
    model: ModelServing, curve: ServiceCurve, stream: Stream, concurrency: int, seed: int
) -> ClosedFormEstimate:
    """Saturation, capacity within the stream's limit, and the latency at the floor load.

    Args:
        concurrency: requests outstanding under saturation.
    """
    serving = serving_of(model, curve, stream)
    found = capacity(serving, stream.arrivals, stream.limit, concurrency, seed, _REQUESTS)
    excess = math.log(found.floor_ms / stream.limit.latency_ms)
    return ClosedFormEstimate(found.saturation.per_second, found.per_second, excess)


def serving_of(model: ModelServing, curve: ServiceCurve, stream: Stream) -> Serving:
    """A model that is served in some way, as the simulation sees it."""
    # Where a rate limiter lets only some of the instances execute, the curve knows how many.
    scheduler = replace(scheduler_of(model, stream), instances=len(curve.busy_factors))
    return Serving(scheduler, curve, _shapes(model, stream))


def _shapes(model: ModelServing, stream: Stream) -> Shapes:
    """Times are in proportion to the length; the curve is of the mean over all that are sent."""
    lengths = shapes_of(model, stream, float)
    mean = sum(s * length for s, length in zip(lengths.shares, lengths.factors, strict=True))
    return replace(lengths, factors=tuple(length / mean for length in lengths.factors))

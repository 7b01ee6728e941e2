"""Instances that are made up: how long a batch takes is known."""

from __future__ import annotations

from optimizer.fleet.planning.instance import Instance, ServedStreams
from optimizer.measurement.cost import Price
from optimizer.simulator.batcher import Scheduler
from optimizer.simulator.network import one_batcher
from optimizer.simulator.prediction import OfferedStream
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.streams import LatencyLimit


def batching_streams(scale: float = 1.0, limit_ms: float = 60.0) -> ServedStreams:
    """Two model instances that merge up to 16 requests; `scale` makes them slower."""
    curve = ServiceCurve(
        (1, 16),
        (6.0 * scale, 24.0 * scale),
        spread=0.1,
        busy_factors=(0.7, 1.0),
        outside_ms=0.5,
    )
    network = one_batcher(Scheduler(16, (), 1000, dynamic=True, instances=2), curve)
    stream = OfferedStream("poisson", LatencyLimit(95.0, limit_ms))
    return ServedStreams(network, (stream,), concurrency=64)


def instance(
    name: str = "a.large",
    usd_per_hour: float = 0.5,
    capacity: float = 1100.0,
    *,
    low: float | None = None,
    served: ServedStreams | None = None,
) -> Instance:
    """One of a type; its study has the same name."""
    return Instance(
        name=name,
        price=Price(name, usd_per_hour, "the tests", "2026-01"),
        capacity_per_second=capacity,
        capacity_low_per_second=capacity if low is None else low,
        setup_seconds=8.0,
        served=served or batching_streams(),
    )

"""Recorded tables without a recording: a small space whose every point has made-up figures."""

from __future__ import annotations

from collections.abc import Callable

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.search.recorded.table import (
    Kind,
    Latency,
    RecordedLevel,
    RecordedRow,
    RecordedSpace,
    RecordedTable,
    StreamLatency,
)
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload
from tests.unit.studies import DEMAND, LIMIT_MS, PRICE, capacity_of

MACHINE = Machine("a processor", 2, 24, ("avx2",), (("numpy", "1.26"),), "3.11", "Linux")

WORKLOAD = Workload(
    (
        Stream(
            "bert",
            "bert",
            "poisson",
            Payloads((), LengthDistribution((32,), (1.0,))),
            LatencyLimit(95.0, LIMIT_MS),
            DEMAND.requests_per_second,
        ),
    )
)

Capacity = Callable[[ServingConfig], float]


def recorded_row(space: SearchSpace, row: int, rate: float, kind: Kind = "point") -> RecordedRow:
    """A point that saturates 5 % above its capacity, in batches as large as may be."""
    position = space.at(row)
    [model] = space.config(position).models
    compute_ms = 1e3 * model.instance_count * model.max_batch_size / (1.05 * rate)
    executed = BatchPoint(model.max_batch_size, 100, compute_ms)
    requests = executed.batch_size * executed.executions
    servers = (ServerSplit("bert", requests, 5.0, 0.1, compute_ms, 0.1, (executed,)),)
    return RecordedRow(
        kind=kind,
        position=position,
        outcome="ok",
        reason="met the limits",
        capacity_per_second=rate,
        capacity_low_per_second=0.98 * rate,
        capacity_high_per_second=1.02 * rate,
        excess=-0.5,
        saturation=RecordedLevel(1.05 * rate, 2.5, 0.5, (), servers),
        saturation_high_per_second=1.06 * rate,
        light=RecordedLevel(
            0.5 * rate, 1.5, 0.4, (StreamLatency("bert", compute_ms, 3 * compute_ms),), servers
        ),
        latencies=(Latency(0.5 * rate, 20.0),) if kind == "latencies" else (),
        measuring_seconds=8.0,
        serving_seconds=1.0,
    )


def recorded_table(space: SearchSpace, capacity: Capacity = capacity_of) -> RecordedTable:
    """Every point once."""
    recorded = RecordedSpace("test", space, WORKLOAD, PRICE, DEMAND, 0.5, MACHINE, "2026-01-01")
    rates = [capacity(space.config(space.at(row))) for row in range(len(space))]
    rows = [recorded_row(space, row, rate) for row, rate in enumerate(rates)]
    return RecordedTable(recorded, tuple(rows))

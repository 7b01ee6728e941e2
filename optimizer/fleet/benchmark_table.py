"""Rows of the published table's kind: configurations on instance types, and what they cost."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, TextIO

from optimizer.measurement.cost import Demand, Price, score, usd_per_million


@dataclass(frozen=True)
class BenchmarkRow:
    """One configuration on one instance type.

    Attributes:
        configuration: its name, such as "trt-db-ig".
        instances: of the model on each GPU.
        gpus: of the instance type.
        replicas: instances that serve the demand.
        invocations_per_minute: that one instance serves.
        latency_ms: at that load.
        usd_per_hour: of all replicas.
    """

    configuration: str
    runtime: str
    batching: bool
    instances: int
    instance_type: str
    gpus: int
    replicas: int
    invocations_per_minute: float
    latency_ms: float
    usd_per_hour: float

    @property
    def per_second(self) -> float:
        """Requests a second that one instance serves."""
        return self.invocations_per_minute / 60

    def usd_per_million(self, demand: Demand) -> float:
        """The fleet's price spread over the demand."""
        each = demand.inferences_per_request
        return usd_per_million(self.usd_per_hour, demand.requests_per_second, each)

    def priced(self, price: Price, demand: Demand) -> BenchmarkRow:
        """With replicas and cost worked out anew."""
        found = score(self.per_second, self.per_second, price, demand)
        return replace(self, replicas=found.replicas, usd_per_hour=found.fleet_usd_per_hour)


def write_rows(lines: TextIO, rows: Sequence[BenchmarkRow]) -> None:
    """Write a CSV file that `read_rows` reads."""
    writer = csv.DictWriter(lines, list(BenchmarkRow.__annotations__), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(asdict(row) | {"batching": str(row.batching).lower()})


def read_rows(lines: TextIO) -> tuple[BenchmarkRow, ...]:
    """The rows of a CSV file whose columns are a row's attributes."""
    return tuple(map(_row, csv.DictReader(lines)))


def _row(row: Mapping[str, str]) -> BenchmarkRow:
    return BenchmarkRow(
        configuration=row["configuration"],
        runtime=row["runtime"],
        batching=row["batching"] == "true",
        instances=int(row["instances"]),
        instance_type=row["instance_type"],
        gpus=int(row["gpus"]),
        replicas=int(row["replicas"]),
        invocations_per_minute=float(row["invocations_per_minute"]),
        latency_ms=float(row["latency_ms"]),
        usd_per_hour=float(row["usd_per_hour"]),
    )


def cheapest(rows: Sequence[BenchmarkRow], limit_ms: float = math.inf) -> BenchmarkRow | None:
    """The row whose fleet costs least, of those within a limit; None where there is none.

    Of equal costs the lowest latency.
    """
    within = [row for row in rows if row.latency_ms <= limit_ms]
    return min(within, key=lambda row: (row.usd_per_hour, row.latency_ms), default=None)


Feature = Callable[[BenchmarkRow], Any]
"""One of `runtime`, `batching` and `instances`."""


@dataclass(frozen=True)
class ColumnChange:
    """Two rows that differ in one feature."""

    before: BenchmarkRow
    after: BenchmarkRow

    @property
    def throughput(self) -> float:
        """Ratio of what one instance serves."""
        return self.after.invocations_per_minute / self.before.invocations_per_minute

    @property
    def latency(self) -> float:
        """Ratio of the latencies; below 1 is a gain."""
        return self.after.latency_ms / self.before.latency_ms


def changes(rows: Sequence[BenchmarkRow], feature: Feature) -> Iterator[ColumnChange]:
    """All pairs on one instance type in which only `feature` differs, the plainer one first."""
    kept = [each for each in (runtime, batching, instances) if each is not feature]
    for before, after in product(rows, rows):
        same = before.instance_type == after.instance_type
        same = same and all(each(before) == each(after) for each in kept)
        if same and feature(before) < feature(after):
            yield ColumnChange(before, after)


def runtime(row: BenchmarkRow) -> tuple[bool, str]:
    """PyTorch before what is compiled."""
    return (row.runtime != "pytorch", row.runtime)


def batching(row: BenchmarkRow) -> bool:
    """Without dynamic batching before with it."""
    return row.batching


def instances(row: BenchmarkRow) -> int:
    """One model instance before two."""
    return row.instances

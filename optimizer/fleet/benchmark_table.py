"""Tables like the published benchmark: configurations on instance types, and their cost."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, TextIO

from optimizer.files.untrusted import write_csv
from optimizer.measurement.cost import Demand, Price, score, usd_per_million


@dataclass(frozen=True)
class BenchmarkRow:
    """One configuration on one instance type.

    Attributes:
        configuration: name, such as "trt-db-ig".
        instances: of the model, per GPU.
        gpus: of the instance type.
        replicas: instances for the demand.
        invocations_per_minute: throughput of one instance.
        latency_ms: at that throughput.
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
        """Throughput of one instance in requests/s."""
        return self.invocations_per_minute / 60

    def usd_per_million(self, demand: Demand) -> float:
        """Return the price of the fleet per million inferences of the demand."""
        each = demand.inferences_per_request
        return usd_per_million(self.usd_per_hour, demand.requests_per_second, each)

    def priced(self, price: Price, demand: Demand) -> BenchmarkRow:
        """Return the row with replicas and cost for another price and demand."""
        cost = score(self.per_second, self.per_second, price, demand)
        return replace(self, replicas=cost.replicas, usd_per_hour=cost.fleet_usd_per_hour)


def write_rows(lines: TextIO, rows: Sequence[BenchmarkRow]) -> None:
    """Write a CSV file that `read_rows` reads."""
    named = (asdict(row) | {"batching": str(row.batching).lower()} for row in rows)
    write_csv(lines, list(BenchmarkRow.__annotations__), named)


def read_rows(lines: TextIO) -> tuple[BenchmarkRow, ...]:
    """Read the rows of a CSV file whose columns are the attributes of a row."""
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
    """Return the row with the cheapest fleet within a limit, then the lowest latency, if any."""
    within = [row for row in rows if row.latency_ms <= limit_ms]
    return min(within, key=lambda row: (row.usd_per_hour, row.latency_ms), default=None)


Feature = Callable[[BenchmarkRow], Any]
"""One of `runtime`, `batching` and `instances`: a value that orders rows."""


@dataclass(frozen=True)
class ColumnChange:
    """Two rows that differ in one feature."""

    before: BenchmarkRow
    after: BenchmarkRow

    @property
    def throughput(self) -> float:
        """Ratio of the throughputs of one instance."""
        return self.after.invocations_per_minute / self.before.invocations_per_minute

    @property
    def latency(self) -> float:
        """Ratio of the latencies; below 1 is an improvement."""
        return self.after.latency_ms / self.before.latency_ms


def changes(rows: Sequence[BenchmarkRow], feature: Feature) -> Iterator[ColumnChange]:
    """Yield all pairs on one instance type in which only `feature` differs, in its order."""
    others = [each for each in (runtime, batching, instances) if each is not feature]
    for before, after in product(rows, rows):
        same = before.instance_type == after.instance_type
        same = same and all(each(before) == each(after) for each in others)
        if same and feature(before) < feature(after):
            yield ColumnChange(before, after)


def runtime(row: BenchmarkRow) -> tuple[bool, str]:
    """Order PyTorch before compiled runtimes."""
    return (row.runtime != "pytorch", row.runtime)


def batching(row: BenchmarkRow) -> bool:
    """Order rows without dynamic batching first."""
    return row.batching


def instances(row: BenchmarkRow) -> int:
    """Order rows by the number of model instances."""
    return row.instances

"""The published benchmark of eight hand-tuned configurations, and the claims made about it.

AWS Machine Learning Blog, 2022, on NVIDIA Triton and Amazon SageMaker: bert-large-uncased,
sequences of 512 tokens, on three instance types with NVIDIA T4 GPUs. Each row is one load of a ramp
of closed-loop users, not a capacity at the latency limit: the rows are at loads of 8 to 47 users.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from statistics import median

from optimizer.files.shipped import shipped
from optimizer.fleet.benchmark_table import (
    BenchmarkRow,
    ColumnChange,
    batching,
    changes,
    instances,
    read_rows,
    runtime,
)
from optimizer.measurement.cost import Demand

PUBLISHED = "published_benchmark"
"""Name of the shipped table."""

PUBLISHED_DEMAND = Demand(requests_per_second=500.0)
PUBLISHED_LIMIT_MS = 500.0

_HEADLINE, _MIDDLE = "ml.g4dn.xlarge", "ml.g4dn.2xlarge"


def published_rows() -> tuple[BenchmarkRow, ...]:
    """Return the 24 published rows, in their order."""
    with shipped(f"{PUBLISHED}.csv").open(encoding="utf-8") as lines:
        return read_rows(lines)


@dataclass(frozen=True)
class PublishedClaim:
    """A claim of the article about a feature, and the rows that test it.

    Attributes:
        text: the claim, paraphrased.
        pairs: all pairs of rows that it is about.
        measure: the ratio of a pair that it is about.
        low, high: bounds of the ratio, as rounded in the claim.
    """

    text: str
    pairs: tuple[ColumnChange, ...]
    measure: Callable[[ColumnChange], float]
    low: float
    high: float

    @property
    def ratios(self) -> tuple[float, ...]:
        """Ratios of all pairs, ascending."""
        return tuple(sorted(map(self.measure, self.pairs)))

    @property
    def median(self) -> float:
        """Median of the ratios."""
        return median(self.ratios)

    @property
    def supporting_pairs(self) -> int:
        """Number of pairs for which the claim holds."""
        return sum(self.low <= ratio <= self.high for ratio in self.ratios)


def claims(rows: Sequence[BenchmarkRow]) -> tuple[PublishedClaim, ...]:
    """Return the article's claims about its features, with the rows of its own table.

    "About" allows a rounding of a quarter; explicit bounds are exact.
    """
    of_runtime = tuple(changes(rows, runtime))
    one_gpu = tuple(c for c in of_runtime if c.after.gpus == 1)
    four_gpus = tuple(c for c in of_runtime if c.after.gpus > 1)
    batched = tuple(changes(rows, batching))
    doubled = tuple(changes(rows, instances))
    latency, throughput = attrgetter("latency"), attrgetter("throughput")
    return (
        PublishedClaim(
            "TensorRT: about half the latency on one GPU", one_gpu, latency, 0.375, 0.625
        ),
        PublishedClaim("TensorRT: less than a third of it on four", four_gpus, latency, 0, 1 / 3),
        PublishedClaim(
            "TensorRT: at least 30 % more throughput", of_runtime, throughput, 1.3, math.inf
        ),
        *(
            PublishedClaim(
                f"dynamic batching, {name}: twice the throughput",
                tuple(c for c in batched if c.after.runtime == name),
                throughput,
                1.5,
                math.inf,
            )
            for name in ("pytorch", "tensorrt")
        ),
        PublishedClaim("dynamic batching: no noticeable latency", batched, latency, 0.0, 1.1),
        *(
            PublishedClaim(
                f"two instances, {name}: 2 to 4 times the throughput",
                tuple(c for c in doubled if c.after.runtime == name),
                throughput,
                1.5,
                5.0,
            )
            for name in ("pytorch", "tensorrt")
        ),
    )


def notes(rows: Sequence[BenchmarkRow]) -> list[str]:
    """Return where the table contradicts the article."""
    by_name = {(row.configuration, row.instance_type): row for row in rows}
    batched = [
        change.throughput for change in changes(rows, batching) if change.after.runtime == "pytorch"
    ]
    gain = 1 - ColumnChange(by_name["pt-base", _MIDDLE], by_name["trt-base", _MIDDLE]).latency
    rates = per_gpu(rows, "trt-db-ig")
    others = max(rate for name, rate in rates.items() if name != _HEADLINE)
    return [
        f"Dynamic batching changes PyTorch's throughput by {min(batched):.2f} to "
        f"{max(batched):.2f} times, not 2.",
        f"On {_MIDDLE}, TensorRT's latency is {gain:.1%} below PyTorch's (trt-base, pt-base).",
        f"trt-db-ig on {_HEADLINE}, the cheapest row, serves {rates[_HEADLINE]:.1f} requests/s "
        f"per GPU, {rates[_HEADLINE] / others:.1f} times as many as the same GPU on the other "
        f"instance types ({others:.1f} at most).",
    ]


def per_gpu(rows: Sequence[BenchmarkRow], configuration: str) -> Mapping[str, float]:
    """Return requests/s per GPU of one configuration, by instance type: the GPUs are equal."""
    return {
        row.instance_type: row.per_second / row.gpus
        for row in rows
        if row.configuration == configuration
    }

"""What a load test found. Pure values and the statistics that make them.

A `LoadLevel` is one offered load, measured; a `Measurement` is the levels that were visited and
the largest load that met every limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

LevelKind = Literal["saturation", "open_loop"]
CONFIDENCE = 0.95
"""Confidence of every interval that is reported."""


@dataclass(frozen=True)
class Percentile:
    """A percentile of latency with its distribution-free confidence interval.

    Attributes:
        percentile: which one, 0 to 100.
        value_ms: the estimate.
        low_ms, high_ms: order-statistic interval at `CONFIDENCE`, for independent samples. Where
            there are too few samples to bound an end, it is 0 or None.
        samples: latencies it is drawn from.
    """

    percentile: float
    value_ms: float
    low_ms: float
    high_ms: float | None
    samples: int


def percentile_with_interval(latencies_ms: NDArray[np.float64], percentile: float) -> Percentile:
    """Nearest-rank percentile of `latencies_ms` (shape [n], n >= 1) and its interval.

    The interval's ends are the order statistics whose ranks are the binomial quantiles, see
    Hahn and Meeker, Statistical Intervals, section 5.2.

    Raises:
        ValueError: when there is no sample.
    """
    count = len(latencies_ms)
    if count == 0:
        raise ValueError("a percentile needs at least one sample, got 0")
    ordered = np.sort(latencies_ms)
    share = percentile / 100
    rank = max(1, int(np.ceil(share * count - 1e-9)))  # 0.55 * 100 is above 55 in floats
    tail = (1 - CONFIDENCE) / 2
    low = int(stats.binom.ppf(tail, count, share))
    high = int(stats.binom.ppf(1 - tail, count, share)) + 1
    return Percentile(
        percentile=percentile,
        value_ms=float(ordered[rank - 1]),
        low_ms=float(ordered[low - 1]) if low >= 1 else 0.0,
        high_ms=float(ordered[high - 1]) if high <= count else None,
        samples=count,
    )


@dataclass(frozen=True)
class StreamLevel:
    """One stream at one load level.

    Attributes:
        offered_per_second: rate at which requests were due (saturation: at which they were sent).
        achieved_per_second: rate of good replies while requests were due.
        sent, completed, errors: requests after warm-up.
        first_error: message of the first error, None without one.
        latencies: p50, p95, p99 and the limit's own percentile, ascending, from the due time.
        limit_ms: the limit that applied.
    """

    name: str
    offered_per_second: float
    achieved_per_second: float
    sent: int
    completed: int
    errors: int
    first_error: str | None
    mean_ms: float
    latencies: tuple[Percentile, ...]
    limit_percentile: float
    limit_ms: float

    def latency_ms(self, percentile: float) -> float:
        """Value of one of the stored percentiles. Raises KeyError for another."""
        for item in self.latencies:
            if item.percentile == percentile:
                return item.value_ms
        raise KeyError(f"percentile {percentile} was not recorded")

    @property
    def excess(self) -> float:
        """Latency at the limit's percentile relative to the limit, minus 1; <= 0 meets it."""
        return self.latency_ms(self.limit_percentile) / self.limit_ms - 1


@dataclass(frozen=True)
class BatchPoint:
    """One point of the service curve: executions of one batch size and their mean compute time."""

    batch_size: int
    executions: int
    compute_ms: float


@dataclass(frozen=True)
class ServerSplit:
    """Where the server spent a request's time, mean ms, and the batch sizes that it executed."""

    model: str
    requests: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    batches: tuple[BatchPoint, ...]


@dataclass(frozen=True)
class LoadLevel:
    """One offered load, measured.

    Attributes:
        load_factor: offered load relative to the whole demand.
        seconds: measured time, warm-up excluded.
        client_lag_ms: 99th percentile of how late the client sent its requests.
        server_cpu_seconds: process-CPU time of the server over the whole level, None where unseen.
        completed_per_slice: good replies in equal slices of `seconds`, for `rate_interval`.
    """

    kind: LevelKind
    load_factor: float
    seconds: float
    streams: tuple[StreamLevel, ...]
    server: tuple[ServerSplit, ...]
    client_lag_ms: float
    server_cpu_seconds: float | None = None
    completed_per_slice: tuple[int, ...] = ()

    @property
    def achieved_per_second(self) -> float:
        """Good replies a second over all streams."""
        return sum(stream.achieved_per_second for stream in self.streams)

    @property
    def errors(self) -> int:
        """Requests that failed, over all streams."""
        return sum(stream.errors for stream in self.streams)

    @property
    def excess(self) -> float:
        """Largest `StreamLevel.excess`; <= 0 meets every limit."""
        return max(stream.excess for stream in self.streams)

    @property
    def meets_limits(self) -> bool:
        """Whether every request was answered and every stream's percentile is within its limit."""
        return self.errors == 0 and self.excess <= 0


@dataclass(frozen=True)
class Measurement:
    """The levels that were visited and the load that they certify.

    Attributes:
        load_factor: largest load that met the limits; 0 when even the floor load missed them.
        load_factor_low, load_factor_high: the capacity lies between the highest load that passed
            and the lowest that failed (or saturation's upper bound); None where no
            load was too much.
        demand_per_second: requests a second at load factor 1.0.
        ended: why the search for the capacity ended.
    """

    levels: tuple[LoadLevel, ...]
    load_factor: float
    load_factor_low: float
    load_factor_high: float | None
    demand_per_second: float
    ended: str

    @property
    def capacity_per_second(self) -> float:
        """Requests a second that one replica serves within the limits."""
        return self.load_factor * self.demand_per_second

    @property
    def capacity_low_per_second(self) -> float:
        """Lower bound of the capacity."""
        return self.load_factor_low * self.demand_per_second

    @property
    def measuring_seconds(self) -> float:
        """Measured time of all levels."""
        return sum(level.seconds for level in self.levels)

    @property
    def level_at_capacity(self) -> LoadLevel | None:
        """The open-loop level at the capacity, None where no level met the limits."""
        passed = [
            x for x in self.levels if x.kind == "open_loop" and x.load_factor <= self.load_factor
        ]
        return max(passed, key=lambda level: level.load_factor, default=None)


def rate_interval(counts: Sequence[int], seconds_each: float) -> tuple[float, float, float]:
    """Mean rate per second and its `CONFIDENCE` interval from counts of equal time slices.

    Raises:
        ValueError: with fewer than two slices.
    """
    if len(counts) < 2:
        raise ValueError(f"an interval needs at least 2 slices, got {len(counts)}")
    rates = np.asarray(counts, dtype=float) / seconds_each
    mean = float(rates.mean())
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(rates) - 1) * stats.sem(rates))
    return mean, max(0.0, mean - half), mean + half

"""What bursts of requests do to a configuration, with a bounded queue and without. Pure values.

`optimizer.search.bursts` measures them.
"""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig


@dataclass(frozen=True)
class QueueBound:
    """The `max_queue_size` of a model; 0 leaves its queue unbounded."""

    model: str
    max_queue_size: int


@dataclass(frozen=True)
class BurstLevel:
    """Some cycles of a quiet time and a burst. Shares are of all requests of the cycles.

    Attributes:
        height: request rate during a burst, as a share of the certified rate.
        within_limit: share of requests that were answered within the limit.
        rejected: share that the queue policy rejected.
        p50_ms, p95_ms: latency of all requests, where a rejected one counts with the timeout.
        goodput_per_second: requests answered within the limit.
        lag_ms: how late the load generator sent, p99.
    """

    height: float
    within_limit: float
    rejected: float
    p50_ms: float
    p95_ms: float
    goodput_per_second: float
    lag_ms: float


@dataclass(frozen=True)
class QueueUnderBursts:
    """The levels of one bound of the queues, from the lowest to the highest burst."""

    bounds: tuple[QueueBound, ...]
    levels: tuple[BurstLevel, ...]

    @property
    def is_bounded(self) -> bool:
        """Whether any queue is bounded."""
        return any(each.max_queue_size for each in self.bounds)


@dataclass(frozen=True)
class BurstComparison:
    """Bursts on one configuration.

    Attributes:
        queues: as configured first, then the other: bounded, or unbounded. Only the first where no
            model has a dynamic batcher, whose queue can be bounded.
        certified_per_second: request rate that the configuration serves within the limits.
        quiet: request rate between bursts, as a share of it.
        quiet_seconds, burst_seconds: of a cycle.
        cycles: of each level.
        longest_lag_ms: lag of the load generator up to which latencies are the server's.
    """

    config: ServingConfig
    queues: tuple[QueueUnderBursts, ...]
    certified_per_second: float
    quiet: float
    quiet_seconds: float
    burst_seconds: float
    cycles: int
    longest_lag_ms: float

"""What bursts of requests do to a configuration, with a bounded queue and without. Pure values.

`optimizer.search.bursts` measures them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig


@dataclass(frozen=True)
class SendingCost:
    """CPU time of the load generator on the cores that it shares with the server.

    Attributes:
        cores: number of shared cores.
        request_cpu_seconds: CPU time of the load generator for one request.
        certified_per_second: request rate that the configuration serves within the limits.

    Example:
        SendingCost(2, 0.0003, 1000.0).share_left(2.0)  # 1.4 of 1.7 cores: 0.82
    """

    cores: int
    request_cpu_seconds: float
    certified_per_second: float

    def cores_left(self, height: float) -> float:
        """Return the cores that the server has in bursts of a height."""
        return self.cores - height * self._client_cores

    def share_left(self, height: float) -> float:
        """Return these cores as a share of what the server has at the certified rate."""
        return self.cores_left(height) / self.cores_left(1.0)

    def highest(self, share_left: float) -> float:
        """Return the height of the bursts that leave the server this share."""
        return share_left + (1 - share_left) * self.cores / self._client_cores

    @property
    def _client_cores(self) -> float:
        return self.request_cpu_seconds * self.certified_per_second


@dataclass(frozen=True)
class BurstLevel:
    """Some cycles of a quiet time and a burst. Shares are of all requests of the cycles.

    Attributes:
        height: request rate during a burst, as a share of the certified rate.
        sent: requests of the cycles.
        errors: those that were neither answered in time nor rejected.
        first_error: message of the first of these, None without one.
        within_limit: share of requests that were answered within the limit.
        rejected: share that the queue policy rejected.
        p50_ms, p95_ms: latency of all requests, where one without a good reply counts with the
            timeout.
        goodput_per_second: requests answered within the limit.
        void: why the figures are those of the load generator, None where they are the server's.
        warnings: other reasons for caution, such as cores that other processes took.
    """

    height: float
    sent: int
    errors: int
    first_error: str | None
    within_limit: float
    rejected: float
    p50_ms: float
    p95_ms: float
    goodput_per_second: float
    void: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class QueueBound:
    """The `max_queue_size` of a model; 0 leaves its queue unbounded."""

    model: str
    max_queue_size: int


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
        sending: cost of sending on the server's cores; None where it has its own.
    """

    config: ServingConfig
    queues: tuple[QueueUnderBursts, ...]
    certified_per_second: float
    quiet: float
    quiet_seconds: float
    burst_seconds: float
    cycles: int
    sending: SendingCost | None

    @property
    def compared(self) -> Iterator[tuple[QueueUnderBursts, BurstLevel]]:
        """The levels with their queues, those of one height together."""
        for levels in zip(*(queue.levels for queue in self.queues), strict=True):
            yield from zip(self.queues, levels, strict=True)

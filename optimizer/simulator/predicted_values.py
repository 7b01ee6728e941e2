"""What is predicted of a network: its saturation, a load level and its capacity."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PredictedBatcher:
    """Prediction for one model of a network.

    Attributes:
        batches: executions by their size in inferences, ascending.
        utilisation: share of the instances' time that they are occupied.
        mean_queue_ms: from arrival to execution, of requests that were not refused; 0 without any.
    """

    name: str
    batches: dict[int, int]
    utilisation: float
    mean_queue_ms: float

    @property
    def mean_batch(self) -> float:
        """Mean inferences of an execution; 1 without any."""
        executions = sum(self.batches.values())
        return sum(size * n for size, n in self.batches.items()) / executions if executions else 1.0


@dataclass(frozen=True, kw_only=True)
class _PredictedExecutions:
    """What the models of a network execute.

    Attributes:
        batchers: each model of the network, with the requests of all sources.
    """

    batchers: tuple[PredictedBatcher, ...]

    @property
    def bottleneck(self) -> PredictedBatcher:
        """The model whose instances are occupied the most."""
        return max(self.batchers, key=lambda each: each.utilisation)

    @property
    def batches(self) -> dict[int, int]:
        """Executions of the bottleneck by their size in inferences, ascending."""
        return self.bottleneck.batches


@dataclass(frozen=True)
class PredictedSaturation(_PredictedExecutions):
    """Prediction for a closed loop without think time.

    Attributes:
        per_second: requests per second, of all sources.
    """

    per_second: float


@dataclass(frozen=True)
class PredictedLevel(_PredictedExecutions):
    """Prediction for the requests of one source under independent arrivals.

    Attributes:
        offered_per_second: of this source, as the next one.
        achieved_per_second: rate of good replies while requests were due.
        latencies_ms: (percentile, latency) pairs, ascending, of requests that were not refused;
            infinity where all were.
        mean_queue_ms: from arrival to execution, of the same requests, summed over the models of a
            request.
        refused_share: share of the requests that were refused.
        late_share: share of the requests that were over their limit or refused.
    """

    offered_per_second: float
    achieved_per_second: float
    latencies_ms: tuple[tuple[float, float], ...]
    mean_queue_ms: float
    refused_share: float
    late_share: float

    @property
    def utilisation(self) -> float:
        """Share of the time that the instances of the bottleneck are occupied."""
        return self.bottleneck.utilisation

    def latency_ms(self, percentile: float) -> float:
        """Return one of the predicted percentiles. Raises KeyError for another."""
        return dict(self.latencies_ms)[percentile]


@dataclass(frozen=True)
class PredictedCapacity:
    """The largest rate within the limits, by the rules of `optimizer.load.capacity`.

    Attributes:
        per_second: requests per second, of all sources; 0 where even the floor load misses a limit.
        floor_log_excess: logarithm of latency over limit at the floor load, of the worst source.
    """

    per_second: float
    saturation: PredictedSaturation
    floor_log_excess: float

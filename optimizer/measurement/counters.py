"""What a production server did between two readings of its counters."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from optimizer.measurement.level import BatchPoint, ServerSplit


@dataclass(frozen=True)
class CounterInterval:
    """What one replica did between two successive readings.

    Attributes:
        replica: name of the server, usually its address.
        begin_seconds: since the first reading of any replica.
        split: per request and per batch size.
        failures: requests that failed.
    """

    replica: str
    begin_seconds: float
    seconds: float
    split: ServerSplit
    failures: int = 0

    @property
    def end_seconds(self) -> float:
        """When it ended, since the first reading of any replica."""
        return self.begin_seconds + self.seconds


class _OfReplica(Protocol):
    @property
    def replica(self) -> str: ...


_Observed = TypeVar("_Observed", bound=_OfReplica)


def by_replica(observed: Iterable[_Observed]) -> Iterator[list[_Observed]]:
    """Yield what was observed of each replica, in the order of their first observations."""
    groups: dict[str, list[_Observed]] = defaultdict(list)
    for each in observed:
        groups[each.replica].append(each)
    yield from groups.values()


def requests_per_second(intervals: Sequence[CounterInterval]) -> float:
    """Return the mean rate of the answered requests over intervals of one replica."""
    return sum(x.split.requests for x in intervals) / sum(x.seconds for x in intervals)


def joined_split(intervals: Iterable[CounterInterval]) -> ServerSplit:
    """Return the counters of several intervals, at least one, as those of one."""
    splits = [each.split for each in intervals]
    requests = sum(split.requests for split in splits)

    def mean_ms(name: str) -> float:
        total = math.fsum(split.requests * (getattr(split, name) or 0.0) for split in splits)
        return total / max(requests, 1)

    executions: dict[int, int] = defaultdict(int)
    compute_ms: dict[int, float] = defaultdict(float)
    for point in (point for split in splits for point in split.batches):
        executions[point.batch_size] += point.executions
        compute_ms[point.batch_size] += point.executions * point.compute_ms
    return ServerSplit(
        model=splits[0].model,
        requests=requests,
        queue_ms=mean_ms("queue_ms"),
        compute_input_ms=mean_ms("compute_input_ms"),
        compute_infer_ms=mean_ms("compute_infer_ms"),
        compute_output_ms=mean_ms("compute_output_ms"),
        batches=tuple(
            BatchPoint(size, executions[size], compute_ms[size] / executions[size])
            for size in sorted(executions)
        ),
        cache_hits=sum(split.cache_hits for split in splits),
        cache_misses=sum(split.cache_misses for split in splits),
        cache_ms=mean_ms("cache_ms"),
        request_ms=mean_ms("request_ms"),
    )


def mean_batches(executions: int, inferences: int) -> tuple[BatchPoint, ...]:
    """Return executions of the two sizes around the mean batch, with times that are not known."""
    low = max(1, math.floor(inferences / executions))
    larger = min(executions, max(0, inferences - low * executions))
    points = BatchPoint(low, executions - larger, 0.0), BatchPoint(low + 1, larger, 0.0)
    return tuple(point for point in points if point.executions)

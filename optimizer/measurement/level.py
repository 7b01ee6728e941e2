"""Measured load levels and capacities.

A `LoadLevel` is one measured load; a `Measurement` is all levels of a configuration and the largest
load that met every limit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from optimizer.measurement.estimates import Percentile, rate_interval
from optimizer.measurement.resource_use import ClientUse, MachineUse

HIGHEST_SHARE = 0.95
"""Highest load, relative to saturation; above it a queue takes longer to settle than a level."""

FLOOR_SHARE = 0.05
_FLOOR_PER_SECOND = 1.0

LevelKind = Literal["saturation", "open_loop", "user_load"]
LevelVerdict = Literal["feasible", "infeasible"]


def floor_per_second(saturation_per_second: float) -> float:
    """Return the least load that is tried, requests/s; a lower capacity is of no use."""
    return max(FLOOR_SHARE * saturation_per_second, _FLOOR_PER_SECOND)


@dataclass(frozen=True, slots=True)
class StreamLevel:
    """One stream at one load level.

    Attributes:
        offered_per_second: rate at which requests were due (saturation: at which they were sent).
        achieved_per_second: rate of good replies while requests were due, at most the offered one.
        sent, completed, errors, rejected: requests after warm-up. The server's queue policy
            rejects requests, which misses the limit but is no error.
        first_error: message of the first error, None without one.
        mean_ms: latency from the due time, as the percentiles are.
        mean_from_send_ms: latency from the time of sending.
        latencies: p50, p95, p99 and the limit's own percentile, ascending, from the due time.
        latencies_from_send: the same percentiles from the time of sending, to compare with tools
            that measure it.
        limit_ms: the limit that applied.
        within_limit: requests that got a good reply within the limit; None in measurements of
            earlier versions.
    """

    name: str
    offered_per_second: float
    achieved_per_second: float
    sent: int
    completed: int
    errors: int
    first_error: str | None
    mean_ms: float
    mean_from_send_ms: float
    latencies: tuple[Percentile, ...]
    limit_percentile: float
    limit_ms: float
    latencies_from_send: tuple[Percentile, ...] = ()
    rejected: int = 0
    within_limit: int | None = None

    def latency(self, percentile: float) -> Percentile:
        """Return one of the stored percentiles. Raises KeyError for another."""
        for item in self.latencies:
            if item.percentile == percentile:
                return item
        raise KeyError(f"percentile {percentile} was not recorded")

    def latency_ms(self, percentile: float) -> float:
        """Return the value of a stored percentile. Raises KeyError for another."""
        return self.latency(percentile).value_ms

    @property
    def limit_overshoot(self) -> float:
        """Latency at the limit's percentile relative to the limit, minus 1; <= 0 meets it."""
        return self.latency_ms(self.limit_percentile) / self.limit_ms - 1


@dataclass(frozen=True, slots=True)
class BatchPoint:
    """One point of the service curve: executions of one batch size and their mean compute time."""

    batch_size: int
    executions: int
    compute_ms: float

    @property
    def inferences(self) -> int:
        """Inferences of all executions of this size."""
        return self.batch_size * self.executions


@dataclass(frozen=True, slots=True)
class ServerSplit:
    """Mean times of a request in the server, in ms, and the executed batch sizes.

    Attributes:
        ensemble: whether the model passes its requests through other models; its compute times are
            sums of theirs, and its queue time leaves theirs out.
        step: whether the requests came from a composed model and not from clients.
        waiting_ms: of a BLS model, mean time that a request waits for the models that it calls,
            which `compute_infer_ms` and the times of its batches include. Calls that are made at
            the same time are taken to follow each other.
        request_ms: mean time from the arrival of a request to its reply; of an ensemble this has
            the scheduling between its steps, and steps at the same time count once. None in
            measurements of earlier versions.
        cache_hits, cache_misses: requests that the response cache answered, and those whose
            responses it took; others of `requests` were executed while the same request was.
        cache_ms: mean time of lookups and insertions.
        expected_hit_rate: share of hits of a cache in steady state under the traffic; None where
            that is not known.
        entry_bytes: memory of one of its responses in the cache; None where that is not known.
    """

    model: str
    requests: int
    queue_ms: float
    compute_input_ms: float
    compute_infer_ms: float
    compute_output_ms: float
    batches: tuple[BatchPoint, ...]
    ensemble: bool = False
    step: bool = False
    request_ms: float | None = None
    waiting_ms: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    cache_ms: float = 0.0
    expected_hit_rate: float | None = None
    entry_bytes: int | None = None

    @property
    def compute_ms(self) -> float:
        """Mean time of the executions that a request was in."""
        return self.compute_input_ms + self.compute_infer_ms + self.compute_output_ms

    @property
    def total_ms(self) -> float:
        """Mean time in the cache, in the queue and in executions."""
        return self.cache_ms + self.queue_ms + self.compute_ms

    @property
    def hit_rate(self) -> float | None:
        """Share of requests that the response cache answered; None without a cache."""
        used = self.cache_hits + self.cache_misses
        return self.cache_hits / self.requests if used and self.requests else None

    @property
    def executions(self) -> int:
        """Executions of all batch sizes."""
        return sum(point.executions for point in self.batches)

    @property
    def inferences(self) -> int:
        """Inferences of all executions."""
        return sum(point.inferences for point in self.batches)


def inside_server_ms(splits: Sequence[ServerSplit]) -> float | None:
    """Return the mean time of a client's request in the server; None without requests."""
    received = [split for split in splits if not split.step]
    requests = sum(split.requests for split in received)
    if requests == 0:
        return None
    if any(split.ensemble and split.request_ms is None for split in received):
        # An earlier version: the steps of its ensembles are taken to follow each other.
        return sum(s.total_ms * s.requests for s in splits if not s.ensemble) / requests
    times_ms = (s.request_ms if s.ensemble else s.total_ms for s in received)
    inside = sum((ms or 0.0) * s.requests for ms, s in zip(times_ms, received, strict=True))
    return inside / requests


@dataclass(frozen=True, slots=True)
class Latencies:
    """Mean ms of the four latencies that SageMaker distinguishes.

    Attributes:
        container: from sending a request to its reply, the server's work included.
        model: over all containers of a pipeline; there is one.
        overhead: of the endpoint in front of the container; here the lag of the load generator.
        end_to_end: at the client, from the due time.
    """

    container: float
    model: float
    overhead: float
    end_to_end: float


@dataclass(frozen=True, slots=True)
class Slice:
    """One of the equal parts of a level: good replies in it, and their p95, None without any."""

    completed: int
    p95_ms: float | None


@dataclass(frozen=True, slots=True)
class LoadLevel:
    """One measured load.

    Attributes:
        load_factor: offered load relative to the whole demand.
        seconds: measured time, warm-up excluded.
        machine: state of the machine, None where it was not recorded.
        replied_ms: mean time from sending to reply over all good replies, warm-up included, as the
            server's statistics count them; None without one.
        slices: equal parts of `seconds`, in time order.
        verdict: "feasible" or "infeasible" where that is proven, otherwise None.
        ended: why the level ended.
        arrival_effect: log of the ratio of the worst stream's latency, at its limit's percentile,
            to what average arrivals would have caused; 0 where that was not estimated.
        warnings: reasons for caution with the figures, each with its remedy.
    """

    kind: LevelKind
    load_factor: float
    seconds: float
    streams: tuple[StreamLevel, ...]
    server: tuple[ServerSplit, ...]
    client: ClientUse
    machine: MachineUse | None = None
    replied_ms: float | None = None
    slices: tuple[Slice, ...] = ()
    verdict: LevelVerdict | None = None
    ended: str = ""
    arrival_effect: float = 0.0
    warnings: tuple[str, ...] = ()

    @property
    def slowdown(self) -> float:
        """See `MachineUse.slowdown`; 1 where the state of the machine was not recorded."""
        return self.machine.slowdown if self.machine is not None else 1.0

    @property
    def achieved_per_second(self) -> float:
        """Rate of good replies over all streams."""
        return sum(stream.achieved_per_second for stream in self.streams)

    @property
    def offered_per_second(self) -> float:
        """Rate of due requests over all streams."""
        return sum(stream.offered_per_second for stream in self.streams)

    @property
    def rate(self) -> tuple[float, float, float]:
        """Mean rate of good replies over the slices, with its interval at `CONFIDENCE`."""
        counts = [part.completed for part in self.slices]
        return rate_interval(counts, self.seconds / len(counts))

    @property
    def errors(self) -> int:
        """Number of failed requests over all streams."""
        return sum(stream.errors for stream in self.streams)

    @property
    def rejected(self) -> int:
        """Number of requests over all streams that the server's queue policy rejected."""
        return sum(stream.rejected for stream in self.streams)

    @property
    def shortest_limit_ms(self) -> float:
        """Shortest latency limit of the streams."""
        return min(stream.limit_ms for stream in self.streams)

    @property
    def latencies(self) -> Latencies:
        """The four latencies of this level, means over all streams."""
        sent = sum(stream.sent for stream in self.streams)
        container = sum(s.mean_from_send_ms * s.sent for s in self.streams) / sent
        end_to_end = sum(s.mean_ms * s.sent for s in self.streams) / sent
        return Latencies(container, container, end_to_end - container, end_to_end)

    @property
    def network_ms(self) -> float | None:
        """Mean time between client and server: from sending to reply, less the time in the server.

        None without the server's statistics. 0 where these cover all of it: Triton counts the
        output of a batch until its last reply is sent, and other replies have arrived by then.
        """
        inside_ms = inside_server_ms(self.server)
        if inside_ms is None or self.replied_ms is None:
            return None
        return max(0.0, self.replied_ms - inside_ms)

    @property
    def executed(self) -> tuple[ServerSplit, ...]:
        """The splits of models that execute requests; an ensemble passes them to its steps."""
        return tuple(split for split in self.server if not split.ensemble)

    @property
    def requests_received(self) -> int:
        """Requests that the server got from clients, not those that models sent to steps."""
        return sum(split.requests for split in self.server if not split.step)

    def latency_ms(self, percentile: float) -> float:
        """Return the largest percentile of any stream. Raises KeyError if it was not recorded."""
        return max(stream.latency_ms(percentile) for stream in self.streams)

    @property
    def worst(self) -> StreamLevel:
        """The stream that is nearest to its limit, or farthest over it."""
        return max(self.streams, key=lambda stream: stream.limit_overshoot)

    @property
    def limit_overshoot(self) -> float:
        """Largest `StreamLevel.limit_overshoot`; <= 0 meets every limit."""
        return self.worst.limit_overshoot

    @property
    def meets_limits(self) -> bool:
        """Whether no request failed and every stream's percentile is within its limit.

        A void level meets no limit. A rejected request counts as one that missed its limit.
        """
        if not self.client.kept_up or self.errors or self.verdict == "infeasible":
            return False
        return self.limit_overshoot <= 0


def mean_slowdown(levels: Sequence[LoadLevel]) -> float:
    """Return the geometric mean of the levels' slowdowns, by their seconds; 1 without levels."""
    seconds = sum(level.seconds for level in levels)
    if seconds <= 0:
        return 1.0
    return math.exp(sum(level.seconds * math.log(level.slowdown) for level in levels) / seconds)


@dataclass(frozen=True, slots=True)
class Measurement:
    """All levels of one configuration and the load that they certify.

    Attributes:
        load_factor: estimate of the largest load that meets the limits; 0 when even the floor load
            missed them.
        load_factor_low, load_factor_high: its interval at `CONFIDENCE`; None where no load missed
            the limits. Other processes on the machine make it wider: it has what the capacity may
            be without them.
        demand_per_second: request rate at load factor 1.0.
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
        """Request rate that one replica serves within the limits."""
        return self.load_factor * self.demand_per_second

    @property
    def capacity_low_per_second(self) -> float:
        """Lower bound of the capacity."""
        return self.load_factor_low * self.demand_per_second

    @property
    def capacity_high_per_second(self) -> float | None:
        """Upper bound of the capacity, None where no load missed the limits."""
        high = self.load_factor_high
        return high * self.demand_per_second if high is not None else None

    @property
    def measuring_seconds(self) -> float:
        """Measured time of all levels."""
        return sum(level.seconds for level in self.levels)

    @property
    def slowdown(self) -> float:
        """Factor by which other processes may have reduced the capacity: mean of the levels."""
        return mean_slowdown(self.levels)

    @property
    def open_loop(self) -> tuple[LoadLevel, ...]:
        """The levels under independent arrivals, without those that are void."""
        return tuple(x for x in self.levels if x.kind == "open_loop" and x.client.kept_up)

    @property
    def level_at_capacity(self) -> LoadLevel | None:
        """The highest level that met the limits up to the capacity, None where none did."""
        passed = [x for x in self.open_loop if x.load_factor <= self.load_factor and x.meets_limits]
        return max(passed, key=lambda level: level.load_factor, default=None)

    @property
    def nearest_level(self) -> LoadLevel | None:
        """The level at the capacity, or the open-loop one that is nearest to it, if any."""
        at, levels = self.load_factor, self.open_loop
        nearest = min(levels, key=lambda x: abs(x.load_factor - at), default=None)
        return self.level_at_capacity or nearest


@dataclass(frozen=True, slots=True)
class ExtraLimit:
    """Capacity within another latency limit than the workload's own.

    Attributes:
        limit_ms: of the stream whose own limit is the shortest; others keep their proportion.
        measurement: with the levels that were run for this limit only.
        excess: limit overshoot of the level at the capacity (<= 0) or of the floor load (> 0).
    """

    limit_ms: float
    measurement: Measurement
    excess: float

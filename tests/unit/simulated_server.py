"""A queue whose true capacity is known, in place of a server: first in, first out, in batches.

A fake: no process, no network. The same protocol runs on the real server in tests/e2e.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from optimizer.load.exchange import LevelProgress, Replies
from optimizer.load.level_plan import ClosedLoop, EndReason, LevelPlan, OpenLoop
from optimizer.load.levels import load_level
from optimizer.load.schedule import demand_mix, due_requests
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.measurement.resource_use import ClientUse
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, Workload

LOOK_SECONDS = 0.25
NO_CLIENT = ClientUse(processes=1, cpu_seconds=0.0, memory_mib=0.0, lag_ms=0.0)


def workload(limit_ms: float, *demands_per_second: float) -> Workload:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95, limit_ms)
    return Workload(
        tuple(
            Stream(f"stream {n}", "bert", "poisson", payloads, limit, demand)
            for n, demand in enumerate(demands_per_second or (500.0,))
        )
    )


@dataclass
class SimulatedServer:
    """Each instance takes what waits, up to `max_batch`, and serves it in a constant time. With
    `max_batch` 1 and random arrivals it is M/D/c.
    """

    work: Workload
    instances: int = 2
    max_batch: int = 1
    batch_seconds: float = 0.010
    request_seconds: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    plans: list[LevelPlan] = field(default_factory=list)

    def __call__(self, plan: LevelPlan) -> LoadLevel:
        self.plans.append(plan)
        replies, progress = self._replies(plan)
        stopped = first_stop(plan, progress)
        if stopped is not None:
            replies = _until(replies, stopped[1])
        level = load_level(plan, self.work.streams, replies, NO_CLIENT, stopped)
        return replace(level, server=tuple(self._splits(level)))

    def _splits(self, level: LoadLevel) -> Iterator[ServerSplit]:
        """What a server would say of a level in which every batch was as large as may be."""
        size = self.max_batch
        compute_ms = (self.batch_seconds + self.request_seconds * size) * 1e3
        for stream in level.streams:
            batches = (BatchPoint(size, stream.completed // size, compute_ms),)
            yield ServerSplit("bert", stream.completed, 0.0, 0.0, compute_ms, 0.0, batches)

    @property
    def saturation_per_second(self) -> float:
        seconds = self.batch_seconds + self.request_seconds * self.max_batch
        return self.instances * self.max_batch / seconds

    def _replies(self, plan: LevelPlan) -> tuple[Replies, Iterator[LevelProgress]]:
        if isinstance(plan.load, OpenLoop):
            due, streams = due_requests(
                self.work.streams, plan.load.load_factor, plan.sending_seconds, self.rng
            )
            done = self.serve(due)[1]
            planned = (due, streams)
        else:
            assert isinstance(plan.load, ClosedLoop)
            due, done = self.serve([0.0] * plan.load.concurrency, plan.sending_seconds)
            streams = np.resize(demand_mix(self.work.streams, self.rng), len(due))
            planned = (np.empty(0), np.empty(0, dtype=np.int64))
        late = np.flatnonzero(done - due > plan.timeout_seconds)
        errors = {int(index): "DEADLINE_EXCEEDED: too late" for index in late}
        replies = Replies(streams, due, due, done, errors)
        return replies, looks(plan, replies, *planned)

    def serve(
        self, due: Sequence[float] | NDArray[np.float64], closed_loop_seconds: float = 0.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Due and done times; in a closed loop every reply is followed by a new request."""
        if closed_loop_seconds == 0:
            ordered = np.sort(np.asarray(due, dtype=float))
            seconds = self.batch_seconds, self.request_seconds
            return ordered, _done_seconds(ordered, self.instances, self.max_batch, *seconds)
        free, waiting = [0.0] * self.instances, sorted(due)
        begun, done = list[float](), list[float]()
        while waiting:
            start = max(heapq.heappop(free), waiting[0])
            batch = list[float]()
            while waiting and waiting[0] <= start and len(batch) < self.max_batch:
                batch.append(heapq.heappop(waiting))
            finish = start + self.batch_seconds + self.request_seconds * len(batch)
            heapq.heappush(free, finish)
            begun += batch
            done += [finish] * len(batch)
            if finish < closed_loop_seconds:
                for _ in batch:
                    heapq.heappush(waiting, finish)
        return np.array(begun), np.array(done)

    def true_capacity_per_second(self, requests: int = 40_000) -> float:
        """Bisection over long runs of the same arrivals."""
        gaps = np.random.default_rng(0).exponential(size=requests)
        limit = self.work.streams[0].limit
        low, high = 0.0, self.saturation_per_second
        while high - low > 0.002 * self.saturation_per_second:
            rate = (low + high) / 2
            due, done = self.serve(np.cumsum(gaps) / rate)
            latency_ms = np.percentile(done - due, limit.percentile) * 1e3
            low, high = (rate, high) if latency_ms <= limit.latency_ms else (low, rate)
        return low


@njit(cache=True)
def _done_seconds(due, instances, max_batch, batch_seconds, request_seconds):  # type: ignore[no-untyped-def]
    """When each request is answered, in an open loop; compiled, for long runs."""
    free, done, first = np.zeros(instances), np.empty(len(due)), 0
    while first < len(due):
        instance = free.argmin()
        start = max(free[instance], due[first])
        end = first + 1
        while end < len(due) and end - first < max_batch and due[end] <= start:
            end += 1
        free[instance] = start + batch_seconds + request_seconds * (end - first)
        done[first:end] = free[instance]
        first = end
    return done


def looks(
    plan: LevelPlan,
    replies: Replies,
    due_seconds: NDArray[np.float64],
    streams: NDArray[np.int64],
) -> Iterator[LevelProgress]:
    """The level as it was seen while it ran."""
    for now in np.arange(LOOK_SECONDS, plan.sending_seconds, LOOK_SECONDS):
        answered = replies.done_seconds <= now
        known = Replies(
            replies.streams[answered],
            replies.due_seconds[answered],
            replies.sent_seconds[answered],
            replies.done_seconds[answered],
            {},
        )
        yield LevelProgress(float(now), known, due_seconds, streams)


def first_stop(
    plan: LevelPlan, progress: Iterator[LevelProgress]
) -> tuple[EndReason, float] | None:
    """What the plan's rule says first, and when."""
    if plan.stop is None:
        return None
    for look in progress:
        if (ended := plan.stop(look)) is not None:
            return ended, look.now_seconds
    return None


def _until(replies: Replies, end: float) -> Replies:
    kept = np.flatnonzero(replies.due_seconds < end)
    errors = {n: replies.errors[at] for n, at in enumerate(kept.tolist()) if at in replies.errors}
    columns = (
        replies.streams[kept],
        replies.due_seconds[kept],
        replies.sent_seconds[kept],
        replies.done_seconds[kept],
    )
    return Replies(*columns, errors)

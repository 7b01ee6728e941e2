"""Triton's dynamic batcher, step by step as documented, with lists that are scanned from the head.

Slow, without queue policies, and for single inferences: what the compiled model is held against.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from optimizer.simulator.batcher import Scheduler

POLL_MS = 500.0


@dataclass
class Request:
    arrive: float
    shape: int


@dataclass
class Payload:
    requests: list[Request] = field(default_factory=list)
    scheduled: bool = False
    executing: bool = False
    shape_saturated: bool = False


class LiteralBatcher:
    """Requests are let in one after another; `executions` are (begin, arrivals of the batch)."""

    def __init__(self, scheduler: Scheduler, execution_ms: float) -> None:
        self.scheduler = scheduler
        self.execution_ms = execution_ms
        self.delay = scheduler.max_queue_delay_us / 1e3
        self.now = 0.0
        self.wake_at = math.inf
        self.queue: list[Request] = []
        self.scheduled: list[Payload] = []
        self.payload = Payload()
        self.saturated = False
        self.next_preferred = 0
        self.busy_until: list[float] = []
        self.executions: list[tuple[float, tuple[float, ...]]] = []

    def serve(self, arrive_ms: Sequence[float], shapes: Sequence[int]) -> None:
        coming = [Request(at, shape) for at, shape in zip(arrive_ms, shapes, strict=True)]
        while coming or self.queue or self.scheduled or self.busy_until:
            arrival = coming[0].arrive if coming else math.inf
            done = min(self.busy_until, default=math.inf)
            self.now = min(arrival, done, self.wake_at)
            if self.now == done:
                self.busy_until.remove(done)
                self.dispatch()
                self.batcher_thread()
            elif self.now == arrival:
                self.enqueue(coming.pop(0))
            else:
                self.batcher_thread()

    def slot(self) -> bool:
        if self.scheduler.prefetch:
            return len(self.scheduled) < 2 * self.scheduler.instances
        return len(self.busy_until) < self.scheduler.instances

    def enqueue(self, request: Request) -> None:
        self.queue.append(request)
        useful = self.saturated or self.payload.executing
        useful = useful or len(self.queue) >= self.next_preferred
        if self.slot() and (self.scheduler.free_dimensions or useful):
            self.batcher_thread()

    def batcher_thread(self) -> None:
        while True:
            if self.saturated or self.payload.executing:
                self.payload, self.saturated, self.next_preferred = Payload(), False, 0
            if not self.queue or not self.slot():
                self.wake_at = self.now + POLL_MS
                return
            count, sleeps_until = self.dynamic_batch()
            if sleeps_until is not None:
                self.wake_at = sleeps_until
                return
            if count == 0 and not self.saturated:
                self.wake_at = math.inf
                return
            self.payload.requests += self.queue[:count]
            del self.queue[:count]
            if self.payload.requests and not self.payload.scheduled:
                self.payload.scheduled = True
                self.scheduled.append(self.payload)
                self.dispatch()

    def scan(self) -> tuple[int, int, bool]:
        """How many fit, how many of them are best, and whether one was met that does not fit."""
        preferred, most = self.scheduler.preferred, self.scheduler.max_batch_size
        held, best = len(self.payload.requests), 0
        taken: list[Request] = []
        for request in self.queue:
            if held + len(taken) > 0:
                if held + len(taken) + 1 > max(preferred) and best == 0:
                    best, self.saturated = len(taken), True
                if held + len(taken) + 1 > most:
                    return len(taken), best, True
                if request.shape != (self.payload.requests + taken)[0].shape:
                    self.payload.shape_saturated = True
                    return len(taken), best, True
            taken.append(request)
            if held + len(taken) in preferred:
                best = len(taken)
        return len(taken), best, False

    def dynamic_batch(self) -> tuple[int, float | None]:
        """How many join the open payload, or none yet and until when to sleep."""
        preferred, held = self.scheduler.preferred, len(self.payload.requests)
        count, best, send_now = self.scan()
        oldest = min((request.arrive for request in self.queue[:count]), default=-math.inf)
        expired = self.delay > 0 and self.now >= oldest + self.delay
        if best > 0 and not expired:
            self.saturated = self.saturated or self.delay == 0
            return best, None
        if count > 0 and (send_now or held + count >= max(preferred)):
            self.saturated = True
            return count, None
        if count == 0 or expired or self.delay == 0:
            return count, None
        self.next_preferred = min(p for p in preferred if p > held + count) - held
        if not self.saturated and held > 0 and held not in preferred:
            return count, None
        return 0, oldest + self.delay

    def dispatch(self) -> None:
        while self.scheduled and len(self.busy_until) < self.scheduler.instances:
            payload = self.scheduled.pop(0)
            payload.executing = True
            batch = list(payload.requests)
            merging = self.delay > 0 and not payload.shape_saturated
            while merging and self.scheduled and not self.scheduled[0].shape_saturated:
                following = self.scheduled[0]
                merging = self.now > following.requests[0].arrive + self.delay
                if merging:
                    following.executing = True
                    merging = len(batch) + len(following.requests) <= self.scheduler.max_batch_size
                    merging = merging and following.requests[0].shape == batch[0].shape
                if merging:
                    batch += self.scheduled.pop(0).requests
            self.executions.append((self.now, tuple(request.arrive for request in batch)))
            self.busy_until.append(self.now + self.execution_ms)

"""Cases of the simulator's lab: a batcher's configuration with arrivals, and what became of both.

A case is generated from its number alone. It is executed by a server or by the simulator, and both
return an `Execution`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.serving_config import NO_QUEUE_POLICY, QueuePolicy
from optimizer.simulator.batcher import Draws, Scheduler, open_loop
from optimizer.simulator.service_curve import ServiceCurve

_LEAST_GAPS = 5
_CLEARLY_MS = 3.0
"""Times that differ by less are taken to be equal."""

SECONDS = 1.6
"""How long requests of a case arrive."""

_IN_BURST_MS = 4.0
"""Time between two requests of a burst: long against the latency of the server's threads."""

_LARGEST = (1, 2, 3, 4, 6, 8, 12, 16)
_DELAYS_US = (0, 0, 1_000, 5_000, 20_000, 60_000)


@dataclass(frozen=True)
class Case:
    """A batcher, the service times of its instances, and the requests that it gets.

    Attributes:
        priority_levels: 0 leaves Triton's priorities off; requests have the default one.
        fixed_ms, each_ms: an execution takes the first, and the second for each inference.
        due_ms: when each request is sent, ascending.
        shapes: the shape of each request; Triton joins no two.
    """

    number: int
    scheduler: Scheduler
    priority_levels: int
    fixed_ms: float
    each_ms: float
    due_ms: NDArray[np.float64]
    shapes: NDArray[np.int32]

    @property
    def name(self) -> str:
        """Name of its model."""
        return f"case_{self.number}"

    def service_ms(self, inferences: NDArray[np.int64] | int) -> NDArray[np.float64]:
        """Return how long executions of these sizes take."""
        return np.asarray(self.fixed_ms + self.each_ms * np.asarray(inferences))

    def __str__(self) -> str:
        own, policy = self.scheduler, self.scheduler.policy
        parts = [f"max_batch_size {own.max_batch_size}"]
        parts += [f"preferred {own.preferred_batch_sizes}"] if own.preferred_batch_sizes else []
        parts += [f"delay {own.max_queue_delay_us} us"] if own.max_queue_delay_us else []
        parts += ["no dynamic batching"] if not own.dynamic else []
        parts += [f"{own.instances} instances"] if own.instances > 1 else []
        parts += [f"max_queue_size {policy.max_queue_size}"] if policy.max_queue_size else []
        timeout = f"timeout {policy.timeout_us} us, {policy.timeout_action}"
        parts += [timeout] if policy.timeout_us else []
        parts += [f"{self.priority_levels} priority levels"] if self.priority_levels else []
        parts += [f"{own.request_size} inferences a request"] if own.request_size > 1 else []
        parts += ["free dimensions"] if own.free_dimensions else []
        parts += ["2 shapes"] if self.shapes.any() else []
        parts += [f"{self.fixed_ms:.0f} + {self.each_ms:.1f} ms a batch"]
        return ", ".join([*parts, f"{len(self.due_ms)} requests"])


def case_of(number: int, arrivals: int = 0, seconds: float = SECONDS) -> Case:
    """Generate a configuration and one of its sequences of arrivals."""
    rng = np.random.default_rng(number)
    largest = int(rng.choice(_LARGEST))
    size = 2 if largest % 2 == 0 and rng.random() < 0.15 else 1
    dynamic = bool(rng.random() < 0.95)
    free = bool(rng.random() < 0.4)
    policy, levels = NO_QUEUE_POLICY, 0
    fixed, each = float(rng.uniform(12, 40)), float(rng.uniform(0.2, 3.0))
    if dynamic and rng.random() < 0.5:
        policy = _policy(largest // size, fixed, rng)
    if dynamic and rng.random() < 0.1:
        levels = 2
    sizes = rng.choice(np.arange(1, largest + 1), int(rng.integers(1, min(3, largest) + 1)), False)
    scheduler = Scheduler(
        max_batch_size=largest,
        preferred_batch_sizes=tuple(sorted(map(int, sizes))) if rng.random() < 0.6 else (),
        max_queue_delay_us=int(rng.choice(_DELAYS_US)) if dynamic else 0,
        dynamic=dynamic,
        instances=int(rng.choice((1, 1, 1, 2, 3))),
        prefetch=levels == 0,
        request_size=size,
        free_dimensions=free,
        policy=policy,
    )
    longest_ms = fixed + each * (largest if dynamic else size)
    capacity = scheduler.instances * scheduler.most_requests / longest_ms
    rng = np.random.default_rng((number, arrivals))
    rate = min(capacity * float(rng.uniform(0.3, 1.2)), 0.12)
    due = _arrivals(rate, seconds * 1e3, rng)
    shapes = (rng.random(len(due)) < (0.3 if free and rng.random() < 0.4 else 0.0)).astype(np.int32)
    return Case(number, scheduler, levels, fixed, each, due, shapes)


def _policy(most_requests: int, fixed_ms: float, rng: np.random.Generator) -> QueuePolicy:
    bounded, timed = ((True, False), (False, True), (True, True))[rng.integers(3)]
    return QueuePolicy(
        max_queue_size=int(rng.integers(1, 3 * most_requests + 2)) if bounded else 0,
        timeout_us=int(1000 * rng.uniform(0.3, 4.0) * fixed_ms) if timed else 0,
        timeout_action="delay" if timed and rng.random() < 0.4 else "reject",
    )


def _arrivals(rate_per_ms: float, end_ms: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return when requests are due: at random, in bursts, or at equal intervals."""
    kind = rng.choice(("poisson", "bursts", "constant"), p=(0.5, 0.3, 0.2))
    if kind == "constant":
        return np.arange(0.0, end_ms, 1 / rate_per_ms)
    burst = int(rng.integers(2, 12)) if kind == "bursts" else 1
    count = int(2 * end_ms * rate_per_ms / burst) + 10
    starts = np.cumsum(rng.exponential(burst / rate_per_ms, count))
    due = np.repeat(starts, burst) + np.tile(_IN_BURST_MS * np.arange(burst), count)
    return np.sort(due[due < end_ms])


@dataclass(frozen=True)
class Execution:
    """What became of a case's requests.

    Attributes:
        sent_ms: when each request was sent, shape [requests], as the next two.
        begin_ms: when its execution began; NaN where it was rejected.
        rejected: whether the queue policy rejected it.
        sizes: requests in each execution, in the order in which executions began.
        batch_begin_ms, batch_end_ms: of each execution.
        done_ms: when each request was answered or rejected, shape [requests].
        instances: which executed it; empty where that is unknown.
    """

    sent_ms: NDArray[np.float64]
    begin_ms: NDArray[np.float64]
    rejected: NDArray[np.bool_]
    sizes: NDArray[np.int64]
    batch_begin_ms: NDArray[np.float64]
    batch_end_ms: NDArray[np.float64]
    done_ms: NDArray[np.float64]
    instances: tuple[str, ...] = ()

    @property
    def batches(self) -> tuple[tuple[int, ...], ...]:
        """The requests of each execution; of those that began at one instant, the first first."""
        order = np.argsort(np.where(self.rejected, np.inf, self.begin_ms), kind="stable")
        ends = np.cumsum(self.sizes)
        return tuple(
            tuple(sorted(order[end - size : end].tolist()))
            for size, end in zip(self.sizes.tolist(), ends.tolist(), strict=True)
        )

    def to_json(self) -> dict[str, object]:
        """Return the run in plain JSON values; NaN becomes null."""
        begin = [None if np.isnan(ms) else round(ms, 4) for ms in self.begin_ms.tolist()]
        return {
            "sent_ms": self.sent_ms.round(4).tolist(),
            "begin_ms": begin,
            "rejected": self.rejected.tolist(),
            "sizes": self.sizes.tolist(),
            "batch_begin_ms": self.batch_begin_ms.round(4).tolist(),
            "batch_end_ms": self.batch_end_ms.round(4).tolist(),
            "done_ms": self.done_ms.round(4).tolist(),
            "instances": self.instances,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Execution:
        """Return the run that `to_json` wrote."""
        return cls(
            np.array(row["sent_ms"]),
            np.array(row["begin_ms"], dtype=np.float64),
            np.array(row["rejected"], dtype=bool),
            np.array(row["sizes"], dtype=np.int64),
            np.array(row["batch_begin_ms"]),
            np.array(row["batch_end_ms"]),
            np.array(row["done_ms"]),
            tuple(row["instances"]),
        )

    def histogram(self, most: int) -> NDArray[np.int64]:
        """Return the executions of each size, shape [most + 1]."""
        return np.bincount(self.sizes, minlength=most + 1)

    @property
    def mean_queue_ms(self) -> float:
        """Mean time from sending to execution, of what was executed; 0 where nothing was."""
        waited = (self.begin_ms - self.sent_ms)[~self.rejected]
        return float(waited.mean()) if len(waited) else 0.0

    @property
    def overtaken(self) -> int:
        """Executed requests that began after one that was sent clearly later."""
        kept = ~self.rejected
        sent, begin = self.sent_ms[kept], self.begin_ms[kept]
        earliest_later = np.minimum.accumulate(begin[::-1])[::-1]
        later = np.searchsorted(sent, sent + _CLEARLY_MS)
        inside = later < len(sent)
        return int((begin[inside] > earliest_later[later[inside]] + 1.0).sum())


@dataclass(frozen=True)
class Overheads:
    """Times beside the service time, in ms.

    Attributes:
        arrival: from sending a request until the server has queued it.
        start: from giving a batch to an instance until the model begins, which the log has.
        turnaround: from the end of an execution until the instance begins the next that waits.
        each_reply: how much longer that takes for each request, whose reply is sent meanwhile.
    """

    arrival: float = 0.4
    start: float = 0.5
    turnaround: float = 0.9
    each_reply: float = 0.12

    @classmethod
    def of(cls, run: Execution, delay_ms: float) -> Overheads:
        """Return the overheads of a run; where no batch waited for an instance, the usual ones."""
        ended: dict[str, tuple[float, int]] = {}
        gaps = []
        for name, begin, end, batch in zip(
            run.instances, run.batch_begin_ms, run.batch_end_ms, run.batches, strict=True
        ):
            # A request that the batcher holds back for others does not wait for the instance.
            ready = run.sent_ms[list(batch)].min() + delay_ms + _CLEARLY_MS
            before, size = ended.get(name, (0.0, 0))
            if ready < before:
                gaps.append((begin - before, size))
            ended[name] = (end, len(batch))
        waited = run.batch_begin_ms - np.array([run.sent_ms[min(b)] for b in run.batches])
        least = float(waited.min(initial=cls.arrival + cls.start))
        start = max(0.0, least - cls.arrival)
        if len(gaps) < _LEAST_GAPS:
            return cls(start=start)
        times, sizes = np.array(gaps).T
        return cls(start=start, turnaround=float(np.median(times - cls.each_reply * sizes)))

    def after(self, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the turnaround after executions of so many requests."""
        return np.asarray(self.turnaround + self.each_reply * requests)


def simulated(
    case: Case, run: Execution, overheads: Overheads, rng: np.random.Generator | None = None
) -> Execution:
    """Simulate a case with the times at which a server's run sent and executed.

    Args:
        rng: varies these times as a machine does; None takes them as they are.
    """
    requests = len(run.sent_ms)
    arrive = run.sent_ms + overheads.arrival
    took = run.batch_end_ms - run.batch_begin_ms + overheads.after(run.sizes)
    if rng is not None:
        arrive = arrive + rng.gamma(1.0, 0.3, requests) + rng.normal(0.0, 0.1)
        took = took + rng.normal(0.0, 0.3, len(took)) + rng.normal(0.0, 0.15)
    order = np.argsort(arrive, kind="stable")
    size = case.scheduler.request_size
    known = np.arange(1, case.scheduler.max_batch_size + 1)
    curve = ServiceCurve(
        tuple(known.tolist()),
        tuple((case.service_ms(known) + overheads.after(known // size)).tolist()),
        busy_factors=(1.0,) * case.scheduler.instances,
    )
    noise = np.ones(requests)
    expected = case.service_ms(run.sizes * size) + overheads.after(run.sizes)
    noise[: len(took)] = took / expected
    draws = Draws(noise, case.shapes[order], np.ones(2))
    done = open_loop(case.scheduler, curve, arrive[order], draws)
    begin, answered = np.empty((2, requests))
    rejected = np.empty(requests, dtype=bool)
    begin[order], answered[order], rejected[order] = done.begin_ms, done.done_ms, done.refused
    return Execution(
        run.sent_ms,
        begin + overheads.start,
        rejected,
        done.execution_size // size,
        done.execution_begin_ms + overheads.start,
        done.execution_begin_ms + done.execution_ms,
        answered,
    )

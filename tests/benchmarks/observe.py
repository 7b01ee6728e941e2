"""Advice from counters beside measurements: `python -m tests.benchmarks.observe`.

Models that sleep for a set time are observed on the embedded server for 60 s. Then other
configurations of them are measured at several rates around their predicted capacity. The measured
capacity is the rate at which the p95, from sending to the end of the execution, crosses the limit.
Levels run at the same time, each on a copy of the model: sleeping models do not share cores.

`--taken` observes mis-tuned configurations, and measures the advised configuration beside the two
candidates that are best in a simulation with the times that the models are set to.
`--reads` measures the processor time that one read costs the server, and what reads cost its
throughput at saturation: levels with one read a second and without any, in turn. The model takes no
time of its own, so that all of the server's time is spent on requests and reads.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import count
from multiprocessing import get_context
from multiprocessing.synchronize import Event as EventType
from pathlib import Path
from threading import Event, Lock, Semaphore, Thread
from typing import TypeVar

import numpy as np
import psutil
from numpy.typing import NDArray
from tritonclient.grpc import InferInput
from tritonclient.utils import InferenceServerException

from optimizer.configuration.serving_config import (
    Batching,
    InstanceGroup,
    ModelServing,
    ServingConfig,
)
from optimizer.measurement.estimates import NORMAL_QUANTILE
from optimizer.production.advice import Learnt, Predictions, advise, candidates, changes, learn
from optimizer.search.level_runner import concurrency
from optimizer.simulator.batcher import Scheduler, scheduler_of
from optimizer.simulator.prediction import OfferedStream, predict_capacity
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.stream_estimate import network_of_model
from optimizer.triton.connections import triton_client
from optimizer.triton.counter_intervals import observed_serving
from optimizer.triton.counter_recording import CounterReading
from optimizer.triton.counter_source import read_counters
from tests.benchmarks.lab_cases import Case, Execution
from tests.benchmarks.lab_server import LabServer, lab_server

OBSERVED_SECONDS, LEVEL_SECONDS = 60.0, 36.0
_LEVEL_REQUESTS = 5_000
_SHARES = (0.75, 0.88, 1.0, 1.12, 1.25)
_HIGHER_SHARES = (1.5, 2.0, 2.7, 3.6)
"""Of the predicted capacity, where levels are measured; of the latter, one after the other, until
the limit is missed."""

_SENT_PER_SECOND = 600
"""Requests that the client sends at the same time without being late."""

_NEAR = 0.05
"""Extra cost of advice that is near the best."""

_COMPARED = 2
_TAKEN_SHARES = (0.6, 0.75, 0.85, 0.93, 1.0, 1.08, 1.2)
"""Candidates that are measured beside the advised one, at these shares of the best capacity."""

_P95_SHARE = 0.7
_PHASE_SECONDS = 2.0
_HIGH, _LOW = 1.5, 0.5
"""Bursts: the rate changes between these multiples of its mean."""

_WARM_UP = 0.1
_READ_EVERY_SECONDS = 1.0
_SATURATED_SECONDS, _SATURATED_LEVELS = 4.0, 40
"""Of each level with reads and without any, and their number."""

_OUTSTANDING = 16
_LONG_SECONDS = 86_400.0
_numbers = count(5000)


@dataclass(frozen=True)
class Start:
    """A model in production.

    Attributes:
        changes: (batching, max_batch_size, preferred, delay in us, instances) to measure.
    """

    fixed_ms: float
    each_ms: float
    scheduler: Scheduler
    rate: float
    bursts: bool
    changes: tuple[tuple[bool, int, tuple[int, ...], int, int], ...]

    @property
    def limit_ms(self) -> float:
        """Five executions of a single inference."""
        return 5 * (self.fixed_ms + self.each_ms)


def _batched(largest: int, delay_us: int = 0, instances: int = 1) -> Scheduler:
    return Scheduler(largest, (), delay_us, instances=instances, free_dimensions=False)


STARTS = (
    Start(20, 4, _batched(8), 40, False, (
        (True, 8, (), 10_000, 1), (True, 4, (), 0, 1), (True, 8, (4,), 10_000, 1),
        (False, 8, (), 0, 1),
    )),
    Start(40, 6, _batched(16, 40_000), 18, False, (
        (True, 16, (), 0, 1), (True, 16, (), 10_000, 1), (True, 4, (), 0, 1), (True, 16, (), 0, 2),
    )),
    Start(30, 8, _batched(8, 0, 2), 45, False, (
        (True, 8, (), 0, 1), (True, 8, (), 20_000, 2), (False, 8, (), 0, 2),
    )),
    Start(20, 4, Scheduler(8, dynamic=False, free_dimensions=False), 28, False, (
        (True, 8, (), 0, 1), (True, 4, (), 5_000, 1), (False, 8, (), 0, 2),
    )),
    Start(20, 4, _batched(8), 55, True, (
        (True, 8, (), 10_000, 1), (True, 4, (), 0, 1), (True, 8, (), 0, 2),
    )),
    Start(40, 6, _batched(16), 22, True, (
        (True, 16, (), 10_000, 1), (True, 16, (8,), 10_000, 1), (True, 4, (), 0, 1),
    )),
)  # fmt: skip


def arrivals(rate: float, seconds: float, bursts: bool, seed: int) -> NDArray[np.float64]:
    """Return arrival times in ms."""
    rng = np.random.default_rng(seed)
    if not bursts:
        return np.sort(rng.random(rng.poisson(rate * seconds))) * seconds * 1e3
    parts = []
    for n in range(math.ceil(seconds / _PHASE_SECONDS)):
        own = rate * _PHASE_SECONDS * (_HIGH if n % 2 else _LOW)
        parts.append((n + np.sort(rng.random(rng.poisson(own)))) * _PHASE_SECONDS * 1e3)
    return np.concatenate(parts)


def case_of(start: Start, scheduler: Scheduler, rate: float, seconds: float, seed: int) -> Case:
    """Return a copy of the model under load."""
    due = arrivals(rate, seconds, start.bursts, seed)
    shapes = np.zeros(len(due), dtype=np.int32)
    return Case(next(_numbers), scheduler, 0, start.fixed_ms, start.each_ms, due, shapes)


def observe(server: LabServer, starts: Sequence[Start]) -> list[Learnt]:
    """Observe all models at the same time for a minute."""
    seconds = OBSERVED_SECONDS + 2
    cases = [case_of(s, s.scheduler, s.rate, seconds, n) for n, s in enumerate(starts)]
    readings: list[CounterReading] = []
    with ExitStack() as stack:
        loads = [stack.enter_context(server.loaded(case)) for case in cases]
        threads = [Thread(target=load, args=(c,)) for load, c in zip(loads, cases, strict=True)]
        for thread in threads:
            thread.start()
        metrics = [metrics_address(server)]
        read_counters([server.address], metrics, OBSERVED_SECONDS, 1.0, readings.append)
        for thread in threads:
            thread.join()
    learnt = []
    for start, case in zip(starts, cases, strict=True):
        own = observed_serving(readings, case.name)
        learnt.append(learn(own.serving, own.payloads, own.intervals, start.limit_ms))
    return learnt


def changed(learnt: Learnt, change: tuple[bool, int, tuple[int, ...], int, int]) -> ModelServing:
    """Return a changed configuration."""
    dynamic, largest, preferred, delay_us, instances = change
    return replace(
        learnt.serving,
        max_batch_size=largest if dynamic else 1,
        batching=Batching(preferred, delay_us) if dynamic else None,
        groups=(InstanceGroup(count=instances),),
    )


@dataclass(frozen=True)
class Row:
    """A changed configuration as predicted and as measured; intervals are (low, high)."""

    start: int
    change: tuple[bool, int, tuple[int, ...], int, int]
    trusted: bool
    capacity: float
    capacity_interval: tuple[float, float]
    measured_capacity: float | None
    p95_ms: float
    p95_interval: tuple[float, float]
    measured_p95_ms: float


def measured(
    server: LabServer, start: Start, scheduler: Scheduler, rates: Sequence[float]
) -> list[float]:
    """Return the p95 at each rate, as many measured at the same time as the client can send."""
    cases = [
        case_of(start, scheduler, rate, level_seconds(rate), 100 + number)
        for number, rate in enumerate(rates)
    ]
    together = max(1, int(_SENT_PER_SECOND / max(rates)))
    return [
        float(np.percentile(latencies_ms(run)[int(_WARM_UP * len(run.sent_ms)) :], 95))
        for at in range(0, len(cases), together)
        for run in executed(server, cases[at : at + together])
    ]


def level_seconds(rate: float) -> float:
    """Return how long a rate is measured: whole bursts, and enough requests for the percentile."""
    period = 2 * _PHASE_SECONDS
    return min(LEVEL_SECONDS, period * math.ceil(_LEVEL_REQUESTS / rate / period))


def executed(server: LabServer, cases: Sequence[Case]) -> list[Execution]:
    """Execute cases at the same time."""
    with ExitStack() as stack, ThreadPoolExecutor(len(cases)) as pool:
        loads = [stack.enter_context(server.loaded(case)) for case in cases]
        futures = [pool.submit(load, case) for load, case in zip(loads, cases, strict=True)]
        return [future.result() for future in futures]


def latencies_ms(run: Execution) -> NDArray[np.float64]:
    """Return the time from sending each request to the end of its execution.

    The client's threads have no priority: on a busy machine, they take notice of replies late.
    """
    order = np.argsort(run.batch_begin_ms)
    begins = run.batch_begin_ms[order]
    return np.asarray(run.batch_end_ms[order][np.searchsorted(begins, run.begin_ms)] - run.sent_ms)


def crossing_rate(rates: Sequence[float], p95s: Sequence[float], limit_ms: float) -> float | None:
    """Return the rate at which the p95 crosses the limit; None beyond the measured ones."""
    logs = np.maximum.accumulate(np.log(p95s))
    if not logs[0] <= math.log(limit_ms) <= logs[-1]:
        return None
    return float(np.interp(math.log(limit_ms), logs, rates))


def rows(server: LabServer) -> Iterator[Row]:
    """Observe, predict and measure every change."""
    for number, (start, learnt) in enumerate(zip(STARTS, observe(server, STARTS), strict=True)):
        predictions = Predictions(learnt, concurrency, None)
        for change in start.changes:
            model = changed(learnt, change)
            scheduler = scheduler_of(model, learnt.stream)
            capacity = predictions.capacity(model)
            rate = _P95_SHARE * capacity.value
            p95 = predictions.p95(model, rate)
            rates = [rate, *(share * capacity.value for share in _SHARES)]
            p95s = measured(server, start, scheduler, rates)
            for share in _HIGHER_SHARES:
                if max(p95s) > start.limit_ms:
                    break
                rates.append(share * capacity.value)
                p95s += measured(server, start, scheduler, rates[-1:])
            yield Row(
                number, change, learnt.check.trusted,
                capacity.value, (capacity.low, capacity.high),
                crossing_rate(rates, p95s, start.limit_ms),
                p95.value, (p95.low, p95.high), p95s[0],
            )  # fmt: skip


def summary(table: Sequence[Row]) -> str:
    """Return errors and coverage."""
    lines = []
    pairs = {
        "capacity": [
            (r.capacity, r.measured_capacity, r.capacity_interval)
            for r in table
            if r.measured_capacity is not None
        ],
        "p95": [(r.p95_ms, r.measured_p95_ms, r.p95_interval) for r in table],
    }
    for name, own in pairs.items():
        errors = [abs(predicted / real - 1) for predicted, real, _ in own]
        inside = sum(low <= real <= high for _, real, (low, high) in own)
        lines.append(
            f"{name}: {len(own)} of {len(table)}, median error {np.median(errors):.1%}, largest "
            f"{max(errors):.1%}, {inside} within their intervals"
        )
    return "\n".join(lines)


MISTUNED = (
    Start(20, 4, _batched(8, 60_000), 40, False, ()),
    Start(20, 4, _batched(2), 40, False, ()),
    Start(20, 4, Scheduler(8, dynamic=False, free_dimensions=False), 28, False, ()),
    Start(40, 6, _batched(16, 100_000), 18, False, ()),
    Start(40, 6, _batched(4), 24, True, ()),
    Start(30, 8, _batched(8, 0, 4), 60, False, ()),
    Start(10, 1.5, _batched(16, 40_000), 70, False, ()),
    Start(10, 1.5, Scheduler(16, (2,), 0, free_dimensions=False), 100, False, ()),
    Start(10, 1.5, _batched(16, 20_000), 60, True, ()),
    Start(5, 5, _batched(16, 30_000), 60, False, ()),
)


@dataclass(frozen=True)
class Taken:
    """Advice on a mis-tuned configuration, as measured.

    Attributes:
        capacity: of the advised configuration; None where no measured rate was at the limit.
        best_capacity: the largest of the advised one and the candidates that are best by the times
            which the models were set to.
        p95_ms: of the advised configuration at the peak of the demand, divided among its replicas;
            None where no number of replicas was advised.
    """

    start: int
    advice: str
    capacity: float | None
    best: str
    best_capacity: float | None
    p95_ms: float | None
    limit_ms: float

    @property
    def extra_cost(self) -> float:
        """Of the advised configuration over the best one."""
        if self.capacity is None or self.best_capacity is None:
            return math.inf
        return self.best_capacity / self.capacity - 1

    @property
    def holds(self) -> bool:
        """Whether the advised replicas keep the limit at the peak."""
        return self.p95_ms is not None and self.p95_ms <= self.limit_ms


def taken(server: LabServer) -> Iterator[Taken]:
    """Observe the mis-tuned configurations, take the advice, and measure it beside the best."""
    for number, (start, learnt) in enumerate(zip(MISTUNED, observe(server, MISTUNED), strict=True)):
        advised = advise(learnt, concurrency).best
        capacities = true_capacities(start, learnt)
        ranked = sorted(capacities, key=lambda each: -capacities[each])
        compared = dict.fromkeys((advised.serving, *ranked[:_COMPARED]))
        rates = [share * capacities[ranked[0]] for share in _TAKEN_SHARES]
        found = {}
        for model in compared:
            p95s = measured(server, start, scheduler_of(model, learnt.stream), rates)
            found[model] = crossing_rate(rates, p95s, start.limit_ms)
        best = max(found, key=lambda each: found[each] or 0.0)
        p95_ms = None
        if advised.replicas is not None:
            peak = learnt.demand.peak_per_second / advised.replicas
            scheduler = scheduler_of(advised.serving, learnt.stream)
            [p95_ms] = measured(server, start, scheduler, [peak])
        yield Taken(
            number, advised.name, found[advised.serving],
            ", ".join(changes(learnt.serving, best).values()), found[best],
            p95_ms, start.limit_ms,
        )  # fmt: skip


def true_capacities(start: Start, learnt: Learnt) -> dict[ModelServing, float]:
    """Return the capacity of each candidate, simulated with the times that the model is set to."""
    offered = OfferedStream(learnt.stream.arrivals, learnt.stream.limit)
    capacities = {}
    for model in dict.fromkeys(candidates(learnt)):
        truth = true_curve(start, model.max_batch_size, model.instance_count)
        network = network_of_model(model, truth, learnt.stream)
        outstanding = concurrency(ServingConfig((model,)))
        capacities[model] = predict_capacity(network, (offered,), outstanding, 0).per_second
    return capacities


def true_curve(start: Start, largest: int, instances: int) -> ServiceCurve:
    """Return the times of a model that sleeps."""
    sizes = (1, largest) if largest > 1 else (1,)
    times = tuple(start.fixed_ms + start.each_ms * size for size in sizes)
    return ServiceCurve(sizes, times, spread=0.02, busy_factors=(1.0,) * instances)


def read_cost() -> str:
    """Return the server's processor time of one read of all counters."""
    reads = 500
    with tempfile.TemporaryDirectory() as folder, lab_server(Path(folder)) as server:
        case = case_of(STARTS[0], STARTS[0].scheduler, 40, 2, 0)
        with server.loaded(case) as execute:
            execute(case)
            process = psutil.Process(server.pid)
            before = process.cpu_times()
            readings: list[CounterReading] = []
            metrics = [metrics_address(server)]
            read_counters([server.address], metrics, reads * 1e-3, 1e-3, readings.append)
            after = process.cpu_times()
    seconds = after.user + after.system - before.user - before.system
    return f"one read costs the server {1e3 * seconds / len(readings):.2f} ms of processor time"


def metrics_address(server: LabServer) -> str:
    """Return the URL of a server's metrics."""
    return f"http://{server.endpoint.metrics}/metrics"


def reading(address: str, metrics: str, wanted: EventType) -> None:
    """Read as `observe` does, every second while that is wanted; a process of its own."""

    def pause(_: CounterReading) -> None:
        wanted.wait()

    read_counters([address], [metrics], _LONG_SECONDS, _READ_EVERY_SECONDS, pause)


def throughput_with_reads() -> str:
    """Return by how much reads lower the throughput at saturation."""
    context = get_context("spawn")
    wanted = context.Event()
    rates: dict[bool, list[float]] = {False: [], True: []}
    start = Start(0, 0, _batched(1), 0, False, ())
    case = case_of(start, start.scheduler, 1, 1, 0)
    with ExitStack() as opened:
        folder = opened.enter_context(tempfile.TemporaryDirectory())
        server = opened.enter_context(lab_server(Path(folder)))
        opened.enter_context(server.loaded(case))
        arguments = (server.address, metrics_address(server), wanted)
        reader = context.Process(target=reading, args=arguments, daemon=True)
        reader.start()
        answered = opened.enter_context(saturated(server.address, case))
        time.sleep(_SATURATED_SECONDS)
        for number in range(2 * _SATURATED_LEVELS):
            read = number % 2 == 1
            wanted.set() if read else wanted.clear()
            time.sleep(_READ_EVERY_SECONDS)
            before, began = answered(), time.monotonic()
            time.sleep(_SATURATED_SECONDS)
            rates[read].append((answered() - before) / (time.monotonic() - began))
        reader.terminate()
        reader.join()
    changes = np.log(rates[True]) - np.log(rates[False])
    half_width = NORMAL_QUANTILE * changes.std(ddof=1) / math.sqrt(len(changes))
    return (
        f"throughput at saturation {np.mean(rates[False]):.0f}/s; with one read a second it "
        f"changes by {changes.mean():+.2%} (95 %: within {half_width:.2%}, {len(changes)} pairs)"
    )


@contextmanager
def saturated(address: str, case: Case) -> Iterator[Callable[[], int]]:
    """Keep requests outstanding; what is yielded returns how many were answered."""
    client, tensor = triton_client(address), InferInput("ID", [1, 1], "INT64")
    tensor.set_data_from_numpy(np.zeros((1, 1), dtype=np.int64))
    ended, idle, lock, answered = Event(), Semaphore(_OUTSTANDING), Lock(), 0

    def take(result: object, error: InferenceServerException | None) -> None:
        nonlocal answered
        del result
        with lock:
            answered += error is None
        idle.release()

    def send() -> None:
        while not ended.is_set():
            idle.acquire()
            client.async_infer(case.name, [tensor], callback=take)

    sender = Thread(target=send)
    sender.start()
    try:
        yield lambda: answered
    finally:
        ended.set()
        sender.join()
        client.close()


Outcome = TypeVar("Outcome", Row, Taken)


def main() -> None:
    """Print every change, and a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reads", action="store_true", help="measure what a read costs")
    parser.add_argument("--taken", action="store_true", help="take the advice, and measure it")
    parser.add_argument("--record", type=Path, help="file that the rows are written to")
    given = parser.parse_args()
    if given.reads:
        sys.stdout.write(f"{read_cost()}\n{throughput_with_reads()}\n")
        return
    with tempfile.TemporaryDirectory() as folder, lab_server(Path(folder)) as server:
        if given.taken:
            outcomes = list(printed(taken(server), given.record))
            near = sum(each.extra_cost <= _NEAR for each in outcomes)
            holding = sum(each.holds for each in outcomes)
            count = len(outcomes)
            sys.stdout.write(f"{near} of {count} cost at most {_NEAR:.0%} more, {holding} hold\n")
        else:
            sys.stdout.write(summary(list(printed(rows(server), given.record))) + "\n")


def printed(outcomes: Iterator[Outcome], record: Path | None) -> Iterator[Outcome]:
    """Print each outcome, and append it to the record."""
    for outcome in outcomes:
        sys.stdout.write(f"{outcome}\n")
        sys.stdout.flush()
        if record is not None:
            with record.open("a") as file:
                file.write(json.dumps(asdict(outcome)) + "\n")
        yield outcome


if __name__ == "__main__":
    main()

"""How fast the simulator is: requests a second on one core, and seconds to rank the quickstart.

    .venv/bin/python -m tests.benchmarks.simulator_speed

Seconds are of the wall clock; other work on the machine shows in them. CPU seconds stand beside.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import numpy as np

from optimizer.configuration.serving_config import ModelServing
from optimizer.search.level_runner import concurrency
from optimizer.simulator.batcher import ONE_SHAPE, Scheduler, draw, open_loop, scheduler_of
from optimizer.simulator.network import one_batcher
from optimizer.simulator.prediction import OfferedStream, predict_capacity
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.space_file.reader import Space
from optimizer.workload.streams import LatencyLimit
from tests.benchmarks.synthetic_tables import quickstart

REQUESTS = 500_000
REPEATS = 7
CURVE = ServiceCurve((1, 64), (1.0, 8.0), spread=0.1, busy_factors=(0.8, 1.0))
SCHEDULERS = {
    "no batching": Scheduler(1, dynamic=False, instances=2),
    "max_batch_size 64": Scheduler(64, instances=2),
    "max_batch_size 64, fixed dimensions": Scheduler(64, instances=2, free_dimensions=False),
    "max_batch_size 64, preferred 4/8/16, queue delay 500 us": Scheduler(
        64, (4, 8, 16), 500, instances=2
    ),
    "the same, no prefetching": Scheduler(64, (4, 8, 16), 500, instances=2, prefetch=False),
    "max_batch_size 8, queue delay 2000 us": Scheduler(8, (), 2000, instances=2),
}


@dataclass(frozen=True)
class Spent:
    """Seconds that something took."""

    wall: float
    cpu: float


def timed(work: Callable[[], object]) -> Spent:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Spent(time.perf_counter() - wall, time.process_time() - cpu)


def simulation(scheduler: Scheduler, load: float) -> Callable[[], object]:
    """A simulation of `REQUESTS` requests at this share of what the largest batches serve."""
    rng = np.random.default_rng(1)
    most = scheduler.most_requests
    per_ms = load * scheduler.instances * most / CURVE.table_ms(most)[most]
    arrive_ms = np.cumsum(rng.exponential(1 / per_ms, REQUESTS))
    draws = draw(REQUESTS, CURVE.spread, ONE_SHAPE, rng)
    return lambda: open_loop(scheduler, CURVE, arrive_ms, draws)


def stand_in(model: ModelServing) -> ServiceCurve:
    """Some curve for a point; what it is hardly matters to the time it takes."""
    one_ms = {"int8": 1.5, "bf16": 2.0}.get(model.artifact.precision, 4.0)
    one_ms /= 0.5 + 0.5 * model.groups[0].threads
    factors = tuple(np.linspace(0.6, 1.0, model.instance_count)) if model.instance_count > 1 else ()
    return ServiceCurve((1, 64), (one_ms, 30 * one_ms), 0.1, factors or (1.0,), outside_ms=1.0)


def rank(space: Space, limit_ms: float) -> int:
    """Predict the capacity of every point; returns how many there are."""
    [stream] = space.workload.streams
    offered = OfferedStream(stream.arrivals, LatencyLimit(stream.limit.percentile, limit_ms))
    for position in space.search_space.points:
        config = space.search_space.config(tuple(position.tolist()))
        [model] = config.models
        network = one_batcher(scheduler_of(model, stream), stand_in(model))
        predict_capacity(network, (offered,), concurrency(config), seed=1)
    return len(space.search_space.points)


def main() -> None:
    first = timed(simulation(Scheduler(8), 0.5))
    print(f"compiled, or read from the cache, and first run: {first.wall:.1f} s")
    print(f"\nmillion simulated requests a second, median of {REPEATS}: by the wall clock (by CPU)")
    for name, scheduler in SCHEDULERS.items():
        rates = []
        for load in (0.3, 0.9):
            work = simulation(scheduler, load)
            spent = [timed(work) for _ in range(REPEATS)]
            wall, cpu = (median(getattr(s, kind) for s in spent) for kind in ("wall", "cpu"))
            rates.append(f"{REQUESTS / wall / 1e6:.1f} ({REQUESTS / cpu / 1e6:.1f}) at {load:.0%}")
        print(f"  {name}: {', '.join(rates)}")
    space = quickstart()
    print("\nthe quickstart space ranked, made-up curves")
    for limit_ms in (200, 30, 10):
        points = 0

        def ranking(limit_ms: float = limit_ms) -> None:
            nonlocal points
            points = rank(space, limit_ms)

        spent_ranking = timed(ranking)
        print(
            f"  limit {limit_ms} ms: {points} points in {spent_ranking.wall:.1f} s "
            f"(CPU {spent_ranking.cpu:.1f} s)"
        )


if __name__ == "__main__":
    main()

"""Recordings of the counters of a simulated production server, whose service times are set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.simulator.batcher import ONE_SHAPE, Scheduler, Simulation, draw, open_loop
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.triton.counter_recording import CounterReading

CONFIG: Mapping[str, Any] = {
    "name": "bert",
    "platform": "onnxruntime_onnx",
    "max_batch_size": 8,
    "input": [{"name": "X", "data_type": "TYPE_FP32", "dims": ["4"]}],
    "output": [{"name": "Y", "data_type": "TYPE_FP32", "dims": ["4"]}],
    "instance_group": [{"name": "bert", "kind": "KIND_CPU", "count": 1}],
    "dynamic_batching": {"preferred_batch_size": [8]},
}
SCHEDULER = Scheduler(8, free_dimensions=False)
FIXED_MS, EACH_MS = 16.0, 4.0


def poisson(rate: float, seconds: float, seed: int = 0) -> NDArray[np.float64]:
    """Return arrival times in ms."""
    rng = np.random.default_rng(seed)
    count = rng.poisson(rate * seconds)
    return np.sort(rng.random(count)) * seconds * 1e3


def served(
    arrive_ms: NDArray[np.float64],
    scheduler: Scheduler = SCHEDULER,
    spread: float = 0.05,
    slower: float = 1.0,
) -> Simulation:
    """Simulate a server whose executions take `FIXED_MS` and `EACH_MS` for each inference."""
    sizes = (1, scheduler.max_batch_size) if scheduler.max_batch_size > 1 else (1,)
    times = tuple(slower * (FIXED_MS + EACH_MS * size) for size in sizes)
    curve = ServiceCurve(sizes, times, busy_factors=(1.0,) * scheduler.instances)
    draws = draw(len(arrive_ms), spread, ONE_SHAPE, np.random.default_rng(1))
    return open_loop(scheduler, curve, arrive_ms, draws)


@dataclass(frozen=True)
class Server:
    """A simulated server with counters, which start at some number as if it had run before."""

    simulation: Simulation
    name: str = "server"
    version: str = "1"
    batch_stats: bool = True
    count_before: int = 1000

    def stats(self, seconds: float) -> dict[str, Any]:
        """Return the statistics of the model at a time."""
        own, now = self.simulation, 1e3 * seconds
        ended = own.execution_begin_ms + own.execution_ms <= now
        sizes, took = own.execution_size[ended], own.execution_ms[ended]
        done = own.done_ms <= now
        requests, before = int(done.sum()), self.count_before
        inside = (own.done_ms - own.begin_ms)[done].sum()

        def part(count: int, ms: float) -> dict[str, str]:
            # gRPC's JSON has texts for numbers of 64 bits.
            return {"count": str(count), "ns": str(int(1e6 * ms))}

        batches = [
            {
                "batch_size": str(size),
                "compute_input": part(int((sizes == size).sum()), 0.0),
                "compute_infer": part(int((sizes == size).sum()), took[sizes == size].sum()),
                "compute_output": part(int((sizes == size).sum()), 0.0),
            }
            for size in np.unique(sizes).tolist()
        ]
        return {
            "name": "bert",
            "version": self.version,
            "inference_count": str(before + requests),
            "execution_count": str(before + len(sizes)),
            "inference_stats": {
                "success": part(before + requests, inside + own.queue_ms[done].sum()),
                "fail": part(0, 0.0),
                "queue": part(before + requests, own.queue_ms[done].sum()),
                "compute_input": part(before + requests, 0.0),
                "compute_infer": part(before + requests, inside),
                "compute_output": part(before + requests, 0.0),
            },
            "batch_stats": batches if self.batch_stats else [],
        }

    def readings(self, until: int, every: float = 1.0, begin: float = 0.0) -> list[CounterReading]:
        """Return the readings of a server, its configuration in the first."""
        return [
            CounterReading(
                at,
                self.name,
                {"model_stats": [self.stats(at)]},
                {"bert": CONFIG} if n == 0 else {},
            )
            for n, at in enumerate(np.arange(begin, until + every / 2, every).tolist())
        ]


def recorded(readings: Sequence[CounterReading]) -> str:
    """Return the text of a recording."""
    return "".join(each.to_line() for each in readings)

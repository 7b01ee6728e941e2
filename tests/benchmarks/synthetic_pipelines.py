"""Made-up truths of a pipeline of three steps that share two cores, as tables to be searched.

Every step has its own times. Executions slow each other down by pairs. What a server would count of
each step is counted: batches, with the times that they took while others ran, and queues. Beside
that, each step has an error that is new for every layout and largest batch, and each measurement
has noise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from optimizer.configuration.model_space import Position
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.load.curve import LIGHT_SHARE, SHARES_OF_CAPACITY
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.level import BatchPoint, ServerSplit
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import (
    Latency,
    RecordedLevel,
    RecordedRow,
    RecordedSpace,
    RecordedTable,
    StreamLatency,
)
from optimizer.simulator.batcher import Simulation
from optimizer.simulator.network import Contention, Network
from optimizer.simulator.network_simulation import (
    NetworkSimulation,
    network_closed_loop,
    network_open_loop,
)
from optimizer.simulator.predicted_values import PredictedCapacity
from optimizer.simulator.prediction import Loads, predict_capacity
from optimizer.simulator.served_network import network_of, offered_streams
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_observation import executing
from optimizer.space_file.reader import Space
from tests.benchmarks.synthetic_tables import NOISE, Truth, faster
from tests.unit.pipelines import STEPS, TOP, space_of

UNMODELLED = 0.05
"""Standard deviation of the logarithm of the error of a step's layout and largest batch."""

CORES = 2
PARAMETERS = {
    "tokenizer.batching": [False, True],
    "tokenizer.instance_count": [1, 2],
    "classifier.batching": [False, True],
    "classifier.max_batch_size": [8, 16, 32],
    "classifier.max_queue_delay_us": [0, 2000],
    "classifier.instance_count": [1, 2],
    "labeller.batching": [False, True],
    "labeller.instance_count": [1, 2],
}
TIMES_MS = {"tokenizer": (0.15, 0.35), "classifier": (3.0, 1.0), "labeller": (0.15, 0.12)}
"""Usual times of an execution and of each inference."""

_SERVING_SECONDS, _WARMUP_SECONDS, _LEVEL_SECONDS, _LEVELS = 2.0, 0.7, 3.5, 3
_OUTSIDE_MS = 0.4
_REQUESTS = 3_000


def pipeline_space(parameters: Mapping[str, object] = PARAMETERS, limit_ms: float = 80.0) -> Space:
    """A text classifier of three steps on two cores."""
    with TemporaryDirectory() as folder:
        return space_of(Path(folder), parameters, limit={"latency_ms": limit_ms})


class PipelineTruth:
    """Times and contention of one truth."""

    def __init__(self, space: Space, seed: int, requests: int = 20_000) -> None:
        self._space = space
        self._requests = requests
        self._truth = Truth(seed)
        uniform = self._truth.uniform
        self.contention = Contention(
            tuple(
                tuple(uniform(0.0, 0.3, "pair", a, b) if a != b else 0.0 for b in STEPS)
                for a in STEPS
            ),
        )

    def curve(self, model: ModelServing) -> ServiceCurve:
        """Times of a step."""
        truth, (fixed_ms, item_ms) = self._truth, TIMES_MS[model.name]
        pace = truth.normal(UNMODELLED, "rough", model.name, model.groups, model.max_batch_size)
        pace *= truth.normal(0.4, "pace", model.name)
        sharing = truth.uniform(1.0, 1.3, "sharing", model.name)
        pace *= sharing if model.instance_count > 1 else 1.0
        sizes = tuple(sorted({1, model.max_batch_size}))
        return ServiceCurve(
            sizes,
            tuple(pace * (fixed_ms + item_ms * size) for size in sizes),
            spread=truth.uniform(0.1, 0.5, "spread"),
            busy_factors=(1.0,) if model.instance_count == 1 else (1 / sharing, 1.0),
            outside_ms=_OUTSIDE_MS,
            wake_ms=truth.uniform(0.0, 0.1, "wake"),
        )

    def network(self, config: ServingConfig) -> Network:
        """Return what really serves a configuration."""
        curves = {model.name: self.curve(model) for model in executing(config)}
        return network_of(config, curves, self.contention, self._space.workload)

    def row(self, position: Position) -> RecordedRow:
        """Return a measurement of a point, without noise."""
        config = self._space.search_space.config(position)
        network, offered = self.network(config), offered_streams(self._space.workload)
        found = predict_capacity(network, offered, concurrency(config), 1, _REQUESTS)
        loads, saturation = Loads(network, offered, self._requests, 1), found.saturation.per_second
        latencies = tuple(
            Latency(rate, loads.levels(rate, (95.0,))[0].latency_ms(95.0))
            for rate in (share * found.per_second for share in SHARES_OF_CAPACITY)
            if rate > 0
        )
        met, high = found.per_second > 0, None
        if met:
            high = 1.02 * found.per_second
        return RecordedRow(
            kind="point",
            position=position,
            outcome="ok" if met else "infeasible",
            reason="simulated",
            capacity_per_second=found.per_second,
            capacity_low_per_second=0.98 * found.per_second,
            capacity_high_per_second=high,
            excess=-0.1 if met else math.expm1(found.floor_log_excess),
            saturation=self._saturated(network, position, concurrency(config), found),
            saturation_high_per_second=1.02 * saturation,
            light=self._light(network, position, LIGHT_SHARE * saturation),
            latencies=latencies,
            measuring_seconds=_LEVELS * _LEVEL_SECONDS,
            serving_seconds=_SERVING_SECONDS,
        )

    def _saturated(
        self, network: Network, position: Position, outstanding: int, found: PredictedCapacity
    ) -> RecordedLevel:
        rng = np.random.default_rng((2, *position))
        draws = network.draw(np.zeros(_REQUESTS, dtype=np.int64), rng).with_mean_noise()
        simulation = network_closed_loop(network, outstanding, draws)
        splits = tuple(_splits(network, simulation))
        rate = found.saturation.per_second
        return RecordedLevel(rate, _LEVEL_SECONDS, _OUTSIDE_MS, (), splits)

    def _light(self, network: Network, position: Position, rate: float) -> RecordedLevel:
        rng = np.random.default_rng((3, *position))
        arrive_ms = np.sort(rng.random(_REQUESTS)) * _REQUESTS / rate * 1e3
        draws = network.draw(np.zeros(_REQUESTS, dtype=np.int64), rng)
        simulation = network_open_loop(network, arrive_ms, draws)
        p50_ms, p95_ms = np.percentile(simulation.latency_ms, [50, 95]).tolist()
        latency = StreamLatency(self._space.workload.streams[0].name, p50_ms, p95_ms)
        splits = tuple(_splits(network, simulation))
        return RecordedLevel(rate, _LEVEL_SECONDS, _OUTSIDE_MS, (latency,), splits)

    def measured(self, position: Position) -> Iterator[RecordedRow]:
        """Yield two measurements, one as far above the truth as the other is below."""
        row = self.row(position)
        noise = self._truth.normal(NOISE, "noise", position)
        yield from (faster(row, noise), faster(row, 1 / noise))


def _splits(network: Network, simulation: NetworkSimulation) -> Iterator[ServerSplit]:
    """Yield what a server counts of each step, and of the ensemble."""
    parts = []
    for batcher, own in zip(network.batchers, simulation.batchers, strict=True):
        parts.append(split_of(batcher.name, own, step=True))
        yield parts[-1]
    compute_ms = sum(part.compute_infer_ms for part in parts)
    executed = BatchPoint(1, len(simulation.done_ms), compute_ms)
    yield ServerSplit(
        TOP, len(simulation.done_ms), 0.0, 0.0, compute_ms, 0.0, (executed,), ensemble=True
    )


def split_of(name: str, own: Simulation, *, step: bool) -> ServerSplit:
    """What a server counts of a model, with the times that executions took while others ran."""
    points = []
    for size in np.unique(own.execution_size).tolist():
        took_ms = own.execution_ms[own.execution_size == size]
        points.append(BatchPoint(size, len(took_ms), float(took_ms.mean())))
    by_request_ms = (own.done_ms - own.begin_ms).mean()
    requests = int(own.execution_size.sum())
    return ServerSplit(
        name, requests, float(own.queue_ms.mean()), 0.0, float(by_request_ms), 0.0,
        tuple(points), step=step,
    )  # fmt: skip


def synthetic_pipeline(seed: int) -> RecordedTable:
    """One truth, each point measured twice, as far above it as below."""
    space = pipeline_space()
    points = space.search_space
    return table_of(space, seed, [points.at(row) for row in range(len(points))])


def table_of(
    space: Space, seed: int, positions: Sequence[Position], requests: int = 20_000
) -> RecordedTable:
    """The table of some points of a truth; latencies are of so many requests."""
    truth = PipelineTruth(space, seed, requests)
    rows = [row for position in positions for row in truth.measured(position)]
    machine = Machine("none: simulated", CORES, 24, (), (), "", "")
    recorded = RecordedSpace(
        "synthetic_pipeline",
        space.search_space,
        space.workload,
        space.price,
        space.demand,
        _WARMUP_SECONDS,
        machine,
        "",
    )
    return RecordedTable(recorded, tuple(rows))

"""Made-up truths over the quickstart's space, as tables that can be searched.

Each artefact has a time for an execution and one for each inference; threads and instances gain
less than they might; the batcher is simulated. What no model of service times can know is an error
that is new for every artefact, batch size and layout.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from optimizer.configuration.hardware import Hardware
from optimizer.configuration.serving_config import ModelServing
from optimizer.files.shipped import shipped
from optimizer.fleet.price_list import shipped_prices
from optimizer.load.curve import LIGHT_SHARE
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
from optimizer.simulator.prediction import OfferedStream, predict_capacity, predict_level
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.stream_estimate import network_of_model
from optimizer.space_file.reader import Space, load_space

UNMODELLED = 0.15
POINT = 0.01
NOISE = 0.03
"""Standard deviations of logarithms."""

_SPEED = {"fp32": 1.0, "fp16": 1.1, "bf16": 1.4, "int8": 2.2}
_SERVING_SECONDS, _WARMUP_SECONDS, _LEVEL_SECONDS, _LEVELS = 1.0, 0.7, 3.5, 3


ONE_QUEUE = ("preferred_batch_size == 'none'", "max_queue_delay_microseconds == 0")
"""Conditions that leave one point of each artefact, largest batch and layout."""


def quickstart(*conditions: str) -> Space:
    """The shipped quickstart on a machine with two cores, under further conditions."""
    hardware = Hardware(cores=2, memory_mib=24_000)
    path = shipped("search_spaces") / "quickstart.yaml"
    space = load_space(path, shipped_prices(), hardware)
    whole = space.search_space
    limits = replace(whole.limits, conditions=(*whole.limits.conditions, *conditions))
    return replace(space, search_space=replace(whole, limits=limits))


SLOWER = {"fp32": 3.0, "fp16": 3.0, "bf16": 2.5, "int8": 1.8}
"""Scales of another kind of hardware, one for each precision."""

UNEXPLAINED = 0.05
"""Standard deviation of the logarithm of what such scales leave out."""


class Truth:
    """Draws each effect once, by what it is an effect of.

    Args:
        slower: factor of the times of each precision on another kind of hardware.
    """

    def __init__(self, seed: int, slower: Mapping[str, float] | None = None) -> None:
        self._rng = np.random.default_rng(seed)
        self._elsewhere = np.random.default_rng([seed, 1])
        self._slower = slower
        self._drawn: dict[Hashable, float] = {}

    def normal(self, sd: float, *key: Hashable) -> float:
        """Factor whose logarithm is normal."""
        if key not in self._drawn:
            self._drawn[key] = float(self._rng.standard_normal())
        return float(np.exp(sd * self._drawn[key]))

    def uniform(self, low: float, high: float, *key: Hashable) -> float:
        """A number between two."""
        if key not in self._drawn:
            self._drawn[key] = float(self._rng.random())
        return low + (high - low) * self._drawn[key]

    def _scale(self, precision: str, *layout: Hashable) -> float:
        if self._slower is None:
            return 1.0
        if layout not in self._drawn:
            self._drawn[layout] = math.exp(UNEXPLAINED * float(self._elsewhere.standard_normal()))
        return self._slower[precision] * self._drawn[layout]

    def curve(self, model: ModelServing) -> ServiceCurve:
        """Times of a model served in some way."""
        artifact, [group] = model.artifact, model.groups
        runtime, precision = artifact.runtime, artifact.precision
        fixed = self.uniform(0.3, 2.0, "fixed", runtime)
        each = self.uniform(1.0, 3.0, "each", runtime) / _SPEED[precision]
        each *= self.normal(0.25, "each", runtime, precision)
        threads = self.uniform(1.2, 1.9, "threads", runtime) if group.threads > 1 else 1.0
        sharing = self.uniform(1.0, 1.4, "sharing", runtime) if group.count > 1 else 1.0
        rough = self.normal(UNMODELLED, "rough", artifact, group, model.max_batch_size)
        sizes = tuple(sorted({1, model.max_batch_size}))
        pace = sharing * rough / threads * self._scale(precision, artifact, group)
        return ServiceCurve(
            sizes,
            tuple(pace * (fixed + each * size) for size in sizes),
            spread=self.uniform(0.1, 0.6, "spread"),
            wake_ms=self.uniform(0.0, 1.5, "wake", runtime),
            busy_factors=(1.0,) if group.count == 1 else (1 / sharing, 1.0),
            outside_ms=0.5,
        )


def synthetic_table(
    seed: int, slower: Mapping[str, float] | None = None, conditions: Sequence[str] = ()
) -> RecordedTable:
    """One truth, each point measured twice, as far above it as below.

    Args:
        slower: see `Truth`; None is the first kind of hardware.
        conditions: on the points of the space.
    """
    space = quickstart(*conditions)
    truth = Truth(seed, slower)
    rows: list[RecordedRow] = []
    for row in range(len(space.search_space)):
        position = space.search_space.at(row)
        config = space.search_space.config(position)
        [model], [stream] = config.models, space.workload.streams
        curve = truth.curve(model)
        outstanding = concurrency(config)
        network = network_of_model(model, curve, stream)
        offered = OfferedStream(stream.arrivals, stream.limit)
        found = predict_capacity(network, (offered,), outstanding, seed)
        rate = LIGHT_SHARE * found.saturation.per_second
        light = predict_level(network, stream.arrivals, rate, seed)
        latency = StreamLatency(stream.name, light.latency_ms(50.0), light.latency_ms(95.0))
        met = found.per_second > 0
        point = RecordedRow(
            kind="repeat",
            position=position,
            outcome="ok" if met else "infeasible",
            reason="simulated",
            capacity_per_second=found.per_second,
            capacity_low_per_second=0.98 * found.per_second,
            capacity_high_per_second=1.02 * found.per_second if met else None,
            excess=-0.1 if met else math.expm1(found.floor_log_excess),
            saturation=_recorded_level(
                found.saturation.per_second, model, curve, found.saturation.batches, ()
            ),
            saturation_high_per_second=1.02 * found.saturation.per_second,
            light=_recorded_level(rate, model, curve, light.batches, (latency,)),
            measuring_seconds=_LEVELS * _LEVEL_SECONDS,
            serving_seconds=_SERVING_SECONDS,
        )
        own = truth.normal(POINT, "point", row)
        noise = truth.normal(NOISE, "noise", row)
        rows += [faster(point, own * noise), faster(point, own / noise)]
    return RecordedTable(_recorded(space), tuple(rows))


def _recorded_level(
    per_second: float,
    model: ModelServing,
    curve: ServiceCurve,
    executed: Mapping[int, int],
    latencies: tuple[StreamLatency, ...],
) -> RecordedLevel:
    times = curve.table_ms(model.max_batch_size)
    batches = tuple(BatchPoint(b, n, float(times[b])) for b, n in executed.items())
    requests = sum(b.batch_size * b.executions for b in batches)
    mean_ms = sum(b.executions * b.compute_ms for b in batches) / sum(executed.values())
    split = ServerSplit(model.name, requests, 0.0, 0.0, mean_ms, 0.0, batches)
    return RecordedLevel(per_second, _LEVEL_SECONDS, curve.outside_ms, latencies, (split,))


def _recorded(space: Space) -> RecordedSpace:
    return RecordedSpace(
        "synthetic",
        space.search_space,
        space.workload,
        space.price,
        space.demand,
        _WARMUP_SECONDS,
        Machine("none: simulated", 2, 24, (), (), "", ""),
        "",
    )


def faster(row: RecordedRow, factor: float) -> RecordedRow:
    """The row of a point that serves so many times as much; rates and times go together."""

    high = row.capacity_high_per_second
    saturation_high = row.saturation_high_per_second
    return replace(
        row,
        capacity_per_second=row.capacity_per_second * factor,
        capacity_low_per_second=row.capacity_low_per_second * factor,
        capacity_high_per_second=high * factor if high is not None else None,
        saturation=_faster_level(row.saturation, factor),
        saturation_high_per_second=saturation_high * factor if saturation_high else None,
        light=_faster_level(row.light, factor),
        latencies=tuple(
            Latency(each.per_second * factor, each.p95_ms / factor) for each in row.latencies
        ),
    )


def _faster_level(level: RecordedLevel | None, factor: float) -> RecordedLevel | None:
    if level is None:
        return None
    return replace(
        level,
        per_second=level.per_second * factor,
        latencies=tuple(
            replace(each, p50_ms=each.p50_ms / factor, p95_ms=each.p95_ms / factor)
            for each in level.latencies
        ),
        servers=tuple(
            replace(
                split,
                queue_ms=split.queue_ms / factor,
                compute_infer_ms=split.compute_infer_ms / factor,
                batches=tuple(replace(b, compute_ms=b.compute_ms / factor) for b in split.batches),
            )
            for split in level.servers
        ),
    )

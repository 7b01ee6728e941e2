"""Made-up truths of service times, and the saturated levels that they would show."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.simulator.execution_layout import ExecutionLayout, execution_layout
from tests.unit.studies import DEMAND, level

Truth = Callable[[ExecutionLayout, int], float]
"""Time in ms that an instance takes for a batch while all are busy."""

PRECISION = {"fp32": 1.0, "bf16": 0.65, "int8": 0.42}
FIXED_MS = {"pytorch": 3.0, "onnxruntime": 0.8, "openvino": 1.6}
ITEM_MS = {"pytorch": 3.2, "onnxruntime": 2.4, "openvino": 2.0}


def affine_truth(seed: int) -> Truth:
    """Fixed and linear times by runtime, factors of precision and layout, small interactions."""
    rng = np.random.default_rng(seed)
    of_threads, of_instances = rng.normal(-0.45, 0.1), rng.normal(0.15, 0.08)
    own: dict[object, float] = {}

    def interaction(key: object, sd: float) -> float:
        return own.setdefault(key, float(rng.normal(0, sd)))

    def truth(layout: ExecutionLayout, batch_size: int) -> float:
        artifact, group = layout.artifact, layout.groups[0]
        precision = PRECISION[artifact.precision] * math.exp(interaction(artifact, 0.08))
        item_ms = ITEM_MS[artifact.runtime] * precision
        slowing = math.log2(group.threads) * of_threads + math.log2(group.count) * of_instances
        slowing += interaction((artifact, group), 0.03)
        return (FIXED_MS[artifact.runtime] + item_ms * batch_size) * math.exp(slowing)

    return truth


def saturated(
    config: ServingConfig, truth: Truth, pace: float = 1.0, overhead_ms: float = 0.5
) -> LoadLevel:
    """What saturation would show of one model; `pace` multiplies all times.

    A tenth of the executions are of half the largest batch. `overhead_ms` of each execution is
    outside what the server counts as computing.
    """
    (model,) = config.models
    layout, largest = execution_layout(model, config.server), model.max_batch_size
    counts = {largest: 900, max(1, largest // 2): 100} if largest > 1 else {1: 1000}
    spent_ms = sum(n * truth(layout, size) * pace for size, n in counts.items())
    inferences = sum(n * size for size, n in counts.items())
    points = tuple(
        BatchPoint(size, n, truth(layout, size) * pace - overhead_ms)
        for size, n in sorted(counts.items())
    )
    split = ServerSplit(model.name, inferences, 30.0, 0.1, 10.0, 0.1, points)
    per_second = 1000 * inferences * model.instance_count / spent_ms
    seen = level(per_second / DEMAND.requests_per_second, kind="saturation")
    return replace(seen, server=(split,), replied_ms=split.total_ms + 1.5)


def levels_of(space: SearchSpace) -> list[tuple[ServingConfig, ExecutionLayout, int]]:
    """A configuration for each execution layout with its largest batch."""
    configs = [space.config(space.at(row)) for row in range(len(space))]
    found = {
        (execution_layout(c.models[0], c.server), c.models[0].max_batch_size): c
        for c in reversed(configs)
    }
    return [(config, layout, size) for (layout, size), config in found.items()]

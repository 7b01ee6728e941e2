"""The service times that counters show, with what they leave uncertain."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optimizer.configuration.serving_config import ModelServing, ServerOptions
from optimizer.measurement.counters import CounterInterval, joined_split
from optimizer.measurement.level import ServerSplit
from optimizer.simulator.service_curve import SPREAD, ServiceCurve, ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe_running

_FEW = 5
"""Executions of one size in an interval: a mean of more shows the drift of the machine, and hardly
how much single executions differ."""

_LEAST_INTERVALS = 20
_SPREADS = (0.02, 1.0)


@dataclass(frozen=True)
class ObservedService:
    """The service times of one model, learnt from its replicas together.

    Attributes:
        split: of all replicas.
        model: predicts the times of sizes and instances that were not executed too, less certainly.
        outside_ms: time in the server beside queue and execution.
    """

    split: ServerSplit
    model: ServiceModel
    outside_ms: float

    @property
    def spread(self) -> float:
        """Coefficient of variation of single executions."""
        return self.model.variation.spread

    def curve(self, serving: ModelServing) -> ServiceCurve:
        """Return the service curve of a replica that is served so."""
        return replace(self.model.curve(serving), outside_ms=self.outside_ms)

    @property
    def executed_sizes(self) -> tuple[int, ...]:
        """Batch sizes that were executed often enough to tell their times, ascending."""
        [observation] = self.model.observations
        return tuple(time.batch_size for time in observation.times)

    @property
    def largest_batch(self) -> int:
        """The largest of these."""
        return self.executed_sizes[-1]

    def share_of_new_sizes(self, batches: Mapping[int, int]) -> float:
        """Return the share of inferences in batches above `largest_batch`."""
        total = sum(size * count for size, count in batches.items())
        new = sum(size * count for size, count in batches.items() if size > self.largest_batch)
        return new / max(total, 1)


def observed_service(
    serving: ModelServing, intervals: Sequence[CounterInterval]
) -> ObservedService:
    """Return the service times of a model; at least one interval has executions."""
    split = joined_split(intervals)
    observation = observe_running(serving, ServerOptions(), split)
    variation = ServiceVariation(_spread(intervals))
    outside_ms = max(0.0, (split.request_ms or 0.0) - split.total_ms)
    return ObservedService(split, ServiceModel((observation,), variation), outside_ms)


def _spread(intervals: Sequence[CounterInterval]) -> float:
    """Estimate from the means of intervals with few executions of a size how much these differ."""
    by_size: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for point in (point for each in intervals for point in each.split.batches):
        if point.executions <= _FEW:
            by_size[point.batch_size].append((point.executions, point.compute_ms))
    squares, freedom = 0.0, 0
    for own in by_size.values():
        if len(own) < 2:
            continue
        counts, means = np.array(own).T
        mean = float(counts @ means / counts.sum())
        squares += float((counts * (means / mean - 1) ** 2).sum())
        freedom += len(own) - 1
    if freedom < _LEAST_INTERVALS:
        return SPREAD
    low, high = _SPREADS
    return min(high, max(low, math.sqrt(squares / freedom)))

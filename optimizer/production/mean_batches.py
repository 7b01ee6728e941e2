"""Times by batch size of a server that counts executions and inferences, but not batch sizes.

Each interval tells its mean batch, and the time that a request spends in executions. A request is
more often in a large batch than an execution is one: with sizes of 1 + Poisson, as they form behind
busy instances, the batch that a request is in has m + (m - 1) / m inferences on average, where the
mean batch is m. Times are taken to grow in a straight line, fitted to intervals of different m.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from optimizer.measurement.counters import CounterInterval
from optimizer.measurement.level import ServerSplit

_FIXED_OVER_ITEM = 0.7
"""Expected fixed time over that of one inference, where mean batches hardly differ."""

_PRIOR_VARIANCE = 0.02
"""Variance of the batch sizes of intervals that tells as much as this expectation."""


def with_batch_sizes(
    intervals: Sequence[CounterInterval],
) -> tuple[CounterInterval, ...]:
    """Return the intervals with executions of the two sizes around the mean, and their times."""
    executed = [each.split for each in intervals if each.split.executions]
    sizes = np.array([_size_of_request(split) for split in executed])
    times_ms = np.array([split.compute_infer_ms for split in executed])
    weights = np.array([split.executions for split in executed], dtype=np.float64)
    mean_size, mean_ms = np.average(sizes, weights=weights), np.average(times_ms, weights=weights)
    expected = mean_ms / (_FIXED_OVER_ITEM + mean_size)
    prior = _PRIOR_VARIANCE * weights.sum()
    away = sizes - mean_size
    slope = (weights * away) @ (times_ms - mean_ms) + prior * expected
    slope /= weights @ away**2 + prior
    slope = min(max(float(slope), 0.0), float(mean_ms / mean_size))
    fixed = float(mean_ms) - slope * float(mean_size)

    def estimated(split: ServerSplit) -> ServerSplit:
        if not split.executions:
            return split
        scale = split.compute_infer_ms / (fixed + slope * _size_of_request(split))
        points = (
            replace(each, compute_ms=scale * (fixed + slope * each.batch_size))
            for each in split.batches
        )
        return replace(split, batches=tuple(points))

    return tuple(replace(each, split=estimated(each.split)) for each in intervals)


def _size_of_request(split: ServerSplit) -> float:
    mean = split.inferences / split.executions
    return mean + (mean - 1) / mean

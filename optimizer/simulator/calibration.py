"""Which ways of serving to saturate first, to know the service times of all best. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace, Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.simulator.saturated_levels import saturated_levels
from optimizer.simulator.service_effects import Coder, covariance
from optimizer.simulator.service_observation import ExecutionLayout
from optimizer.simulator.service_regression import ROW_SD, RUN_SD, nominal_share

CALIBRATION_RUNS = 7

LIGHT_RUNS = 3
"""Of these, after the baseline, have a light load: the others add less than their time is worth."""

_MOST_LEVELS = 2_000
"""Saturated levels of one model that are weighed against each other; a larger space is sampled."""

_Ints = NDArray[np.int64]


def calibration_points(space: SearchSpace, count: int = CALIBRATION_RUNS) -> list[Position]:
    """At most `count` points, in the order of their use, the baseline first.

    Each next one is that whose saturated level most lowers the summed variance of the log
    saturation over all points of the space, given those before it. The prior alone decides, so
    that all are known before anything runs. Of points that differ only in preferred batch sizes and
    delay the one without either is run: saturated, it executes its largest batch.
    """
    parts = list(space.columns())
    levels = [saturated_levels(model, space.points[:, columns]) for model, columns in parts]
    numbers = np.stack([own for own, _ in levels], axis=1)
    plain = np.argsort(sum(_dislike(m, space.points[:, c]) for m, c in parts), kind="stable")
    distinct, first = np.unique(numbers[plain], axis=0, return_index=True)
    rows = plain[first]
    start = numbers[(space.points == np.array(space.baseline)).all(axis=1)][0]
    designs = [
        _Design(found, np.bincount(own), int(begun))
        for (own, found), begun in zip(levels, start, strict=True)
    ]
    points, taken = [space.baseline], (distinct == start).all(axis=1)
    while len(points) < min(count, len(distinct)):
        gains = sum(d.gains(own) for d, own in zip(designs, distinct.T, strict=True))
        best = int(np.argmax(np.where(taken, -np.inf, gains)))
        taken[best] = True
        points.append(space.at(int(rows[best])))
        for design, number in zip(designs, distinct[best], strict=True):
            design.measure(int(number))
    return points


def _dislike(space: ModelSpace, points: _Ints) -> _Ints:
    """Order among points that show the same level: without preferred sizes and delay first."""
    at = [p.name for p in space.parameters].index
    preferred = space.parameter("preferred_batch_sizes").values
    has_preferred = np.array([value not in ("none", ()) for value in preferred])
    delay = points[:, at("max_queue_delay_us")]
    return np.asarray(
        delay + 1000 * has_preferred[points[:, at("preferred_batch_sizes")]], dtype=np.int64
    )


class _Design:
    """The covariance of one model's log saturations, as levels are measured.

    Args:
        weights: how many points of the space each level stands for.
        start: the level that is measured first.
    """

    def __init__(
        self, levels: list[tuple[ExecutionLayout, int]], weights: _Ints, start: int
    ) -> None:
        kept = _sample(len(levels), start)
        self._at = np.full(len(levels), -1)
        self._at[kept] = np.arange(len(kept))
        self._weights = weights[kept]
        rows = Coder().rows([levels[at][0] for at in kept], [levels[at][1] for at in kept])
        share = nominal_share(rows.log_batch)
        self._covariance = covariance(rows, rows).of_times(share, share)
        self.measure(start)

    def gains(self, levels: _Ints) -> NDArray[np.float64]:
        """By how much measuring each of `levels` would lower the weighed sum of variances."""
        noisy = self._covariance.diagonal() + RUN_SD**2 + ROW_SD**2
        gains = self._weights @ self._covariance**2 / noisy
        known = self._at[levels]
        return np.where(known >= 0, gains[known], -np.inf)

    def measure(self, level: int) -> None:
        """Take a level as known, but for its noise."""
        at = self._at[level]
        own = self._covariance[at]
        self._covariance = self._covariance - np.outer(own, own) / (own[at] + RUN_SD**2 + ROW_SD**2)


def _sample(count: int, start: int) -> _Ints:
    if count <= _MOST_LEVELS:
        return np.arange(count)
    drawn = np.random.default_rng(0).choice(count, _MOST_LEVELS, replace=False)
    return np.union1d(drawn, [start])

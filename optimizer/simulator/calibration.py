"""Choice of the configurations that calibrate the service times of a whole space."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace, Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.simulator.execution_layout import ExecutionLayout, saturated_levels
from optimizer.simulator.response_cache import answered_by_cache, cache_columns, cached_models
from optimizer.simulator.service_effects import Coder, covariance
from optimizer.simulator.service_observation import ServiceObservation, executing
from optimizer.simulator.service_regression import ROW_SD, RUN_SD, nominal_share
from optimizer.workload.streams import Workload

CALIBRATION_RUNS = 7

_RUNS_OF_SEVERAL_MODELS = 3
_RUNS_OF_FURTHER_ARTIFACT = 2
"""Calibration runs where there are several models, at most `CALIBRATION_RUNS`: every run shows all
of them, and a further artefact of one shows at its smallest and at its largest batch."""

_ENOUGH_SD = 0.06
"""No further run of one model is made once its log saturations are known so closely, on average. A
forecast has an error of about twice as much in any case, so that a trial, which shows both, is
worth more. Runs of several models also show what these do to each other."""

LIGHT_RUNS = 3
"""Calibration runs that have a light load; in the others it is not worth its time."""

_MOST_LEVELS = 2_000
"""Saturated levels of one model that are compared; a larger space is sampled."""

_Ints = NDArray[np.int64]


def calibration_points(
    space: SearchSpace,
    count: int | None = None,
    lent: Sequence[ServiceObservation] = (),
    executed: NDArray[np.bool_] | None = None,
) -> list[Position]:
    """Return at most `count` points, in the order of their use, the baseline first.

    The saturated level of each next point lowers the summed variance of the log saturation over all
    points of the space the most, given the points before it. The prior alone decides, so the points
    do not depend on results. A small space needs fewer than `count`, see `_ENOUGH_SD`. Of points
    that differ only in preferred batch sizes and queue delay, the one without either is taken:
    saturated, it executes its largest batch.

    Args:
        lent: observations on other hardware, which leave less to be learnt here.
        executed: points whose service times a run shows, shape [points]; all of them by default.
    """
    if count is None:
        count = _usual_count(space, lent)
    parts = list(space.columns())
    levels = [saturated_levels(model, space.points[:, columns]) for model, columns in parts]
    numbers = np.stack([own for own, _ in levels], axis=1)
    plain = np.argsort(sum(_batcher_rank(m, space.points[:, c]) for m, c in parts), kind="stable")
    distinct, first = np.unique(numbers[plain], axis=0, return_index=True)
    rows = plain[first]
    start = numbers[(space.points == np.array(space.baseline)).all(axis=1)][0]
    designs = [
        _Design(
            distinct_levels,
            np.bincount(own),
            int(first_level),
            [each for each in lent if each.layout.model == model.model],
        )
        for (own, distinct_levels), first_level, (model, _) in zip(
            levels, start, parts, strict=True
        )
    ]
    points, taken = [space.baseline], (distinct == start).all(axis=1)
    if executed is not None:
        taken |= ~executed[rows]
    while (
        len(points) < count
        and not taken.all()
        and (len(designs) > 1 or designs[0].mean_variance > _ENOUGH_SD**2)
    ):
        gains = sum(d.gains(own) for d, own in zip(designs, distinct.T, strict=True))
        best = int(np.argmax(np.where(taken, -np.inf, gains)))
        taken[best] = True
        points.append(space.at(int(rows[best])))
        for design, number in zip(designs, distinct[best], strict=True):
            design.measure(int(number))
    return points


def _usual_count(space: SearchSpace, lent: Sequence[ServiceObservation]) -> int:
    """Return the usual number of points.

    With other hardware it is one for each runtime and precision, to show its scale here. Decision
    2026-12-01: where trials were to learn the scales, a search that took over the times of a
    processor with instructions for INT8 took twice as long as one alone on a processor without.
    """
    usual, models = CALIBRATION_RUNS, len(space.models)
    if models > 1:
        further = _RUNS_OF_FURTHER_ARTIFACT * (len(space.artifacts) - models)
        usual = min(usual, _RUNS_OF_SEVERAL_MODELS + further)
    if not lent:
        return usual
    return min(usual, len({(spec.runtime, spec.precision) for spec in space.artifacts}))


def executed_points(space: SearchSpace, workload: Workload) -> NDArray[np.bool_]:
    """Return which points have no response cache that answers, shape [points]; all if none is so.

    What a cache answers keeps cores busy and no instance: such a run shows no service times.
    """
    executed = np.ones(len(space), dtype=np.bool_)
    if answered_by_cache(workload, space):
        for n, parameter in enumerate(space.parameters):
            if parameter.name == "response_cache":
                executed &= ~np.array(parameter.values, dtype=np.bool_)[space.points[:, n]]
    return executed if executed.any() else ~executed


def cached_point(space: SearchSpace, workload: Workload, near: Position) -> Position | None:
    """Return a point with a response cache, where requests repeat; None where there is none.

    It shows how large responses are, and how many requests a second are taken in and answered. It
    differs from `near` as little as possible, and its cache is the largest.
    """
    if not answered_by_cache(workload, space):
        return None
    caches = cache_columns(space)
    others = np.setdiff1d(np.arange(space.points.shape[1]), caches)
    moved = (space.points[:, others] != np.array(near)[others]).sum(axis=1)
    largest = space.points[:, caches].sum(axis=1)
    order = np.lexsort((-largest, moved))
    targets = {stream.target for stream in workload.streams}
    for row in order.tolist():
        config = space.config(space.at(row))
        if any(cached_models(config, target) for target in targets):
            return space.at(row)
    return None


def parts_alone(config: ServingConfig) -> tuple[ServingConfig, ...]:
    """Return what each target is served by, where targets execute different models.

    Served together at one mix of demands, such models are always busy in the same proportion, which
    does not tell their own times from what they do to each other. Served alone, each shows its own.
    """
    parts = (config.part(target.name) for target in config.targets)
    return tuple(part for part in parts if len(executing(part)) < len(executing(config)))


def _batcher_rank(space: ModelSpace, points: _Ints) -> _Ints:
    """Rank points that show the same level: without preferred sizes, delay and policy first."""
    index = [p.name for p in space.parameters].index
    bounded = [
        np.array([value != "off" for value in space.parameter(name).values])[points[:, index(name)]]
        for name in ("max_queue_size", "default_timeout_microseconds")
    ]
    preferred = space.parameter("preferred_batch_sizes").values
    has_preferred = np.array([value not in ("none", ()) for value in preferred])
    delay = points[:, index("max_queue_delay_us")]
    return np.asarray(
        delay
        + 1000 * has_preferred[points[:, index("preferred_batch_sizes")]]
        + 10_000 * sum(bounded),
        dtype=np.int64,
    )


class _Design:
    """The covariance of one model's log saturations while levels are measured.

    Args:
        weights: number of points of the space for each level.
        start: the level that is measured first.
        lent: observations of the model on other hardware.
    """

    def __init__(
        self,
        levels: list[tuple[ExecutionLayout, int]],
        weights: _Ints,
        start: int,
        lent: Sequence[ServiceObservation] = (),
    ) -> None:
        kept = _sample(len(levels), start)
        self._index = np.full(len(levels), -1)
        self._index[kept] = np.arange(len(kept))
        self._weights = weights[kept]
        compared = [levels[n] for n in kept]
        compared += [(x.layout, max(t.batch_size for t in x.times)) for x in lent if x.times]
        layouts, sizes = zip(*compared, strict=True)
        rows = Coder().rows(layouts, sizes)
        share = nominal_share(rows.log_batch)
        self._covariance = covariance(rows, rows).of_times(share, share)
        for row in range(len(kept), len(compared)):
            self._condition(row)
        self._covariance = self._covariance[: len(kept), : len(kept)]
        self.measure(start)

    @property
    def mean_variance(self) -> float:
        """Variance of a point's log saturation that is left, on average over the space."""
        left = self._weights @ self._covariance.diagonal()
        return float(left / self._weights.sum())

    def gains(self, levels: _Ints) -> NDArray[np.float64]:
        """Return by how much measuring each level would lower the weighted sum of variances."""
        noisy = self._covariance.diagonal() + RUN_SD**2 + ROW_SD**2
        gains = self._weights @ self._covariance**2 / noisy
        index = self._index[levels]
        return np.where(index >= 0, gains[index], -np.inf)

    def measure(self, level: int) -> None:
        """Condition on a noisy measurement of a level."""
        self._condition(int(self._index[level]))

    def _condition(self, index: int) -> None:
        own = self._covariance[index]
        noisy = own[index] + RUN_SD**2 + ROW_SD**2
        self._covariance = self._covariance - np.outer(own, own) / noisy


def _sample(count: int, start: int) -> _Ints:
    if count <= _MOST_LEVELS:
        return np.arange(count)
    drawn = np.random.default_rng(0).choice(count, _MOST_LEVELS, replace=False)
    return np.union1d(drawn, [start])

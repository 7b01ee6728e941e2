"""Expected capacities of every point of a space, simulated from service times.

The first forecast of a space takes seconds; later ones simulate only what new measurements changed.
In a space of many points all are ranked by a closed form, and only the best are simulated.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace, Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.simulator.execution_layout import ExecutionLayout, saturated_levels
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_estimate import StreamEstimate, closed_form_estimate
from optimizer.workload.streams import Stream, Workload

MOST_SIMULATED = 3_000
"""Points that are simulated at most; more take too long at some milliseconds each."""

_SAME = 0.01
"""Relative change of a curve below which an estimate is scaled and not simulated again."""

_Ints = NDArray[np.int64]

Simulate = Callable[[ModelServing, ServiceCurve, Stream, int], StreamEstimate]
"""Simulates a model that serves a stream; the number is the concurrency under saturation."""


@dataclass(frozen=True)
class Forecast:
    """Expectations, arrays of shape [points] in the order of `SearchSpace.points`.

    Attributes:
        saturation: load factor under saturation.
        capacity: largest load factor within the limits; 0 where even the floor load misses them.
        floor_log_excess: logarithm of the latency at the limit's percentile over the limit at the
            floor load (largest over the streams); <= 0 is feasible.
        log_sd: standard deviation of the logarithm of saturation and capacity, from the
            uncertainty of the service times.
    """

    saturation: NDArray[np.float64]
    capacity: NDArray[np.float64]
    floor_log_excess: NDArray[np.float64]
    log_sd: NDArray[np.float64]

    def at(self, row: int) -> Forecast:
        """Return the forecast of one point, in arrays of one element."""
        own = slice(row, row + 1)
        return Forecast(
            self.saturation[own], self.capacity[own], self.floor_log_excess[own], self.log_sd[own]
        )


@dataclass(frozen=True)
class _Target:
    """A stream, and the points of the space as seen by the model that it is sent to.

    Attributes:
        points: positions of the model's own parameters, shape [points, own parameters].
        level_of: index of the saturated level of each point, shape [points].
        demand_per_second: of all streams that are sent to the model.
    """

    stream: Stream
    model: ModelSpace
    points: _Ints
    level_of: _Ints
    levels: Sequence[tuple[ExecutionLayout, int]]
    demand_per_second: float


class Forecaster(ABC):
    """Forecasts a space repeatedly, as more of its service times is measured."""

    def __init__(self) -> None:
        self._last: tuple[ServiceModel, Forecast] | None = None

    def forecast(self, service: ServiceModel) -> Forecast:
        """Forecast every point; return the same object as before for the same service times.

        Raises:
            KeyError: when a model of the space was never observed.
        """
        if self._last is None or self._last[0] != service:
            self._last = (service, self._forecast(service))
        return self._last[1]

    @abstractmethod
    def of_point(self, service: ServiceModel, row: int) -> Forecast:
        """Forecast one point of the space, in arrays of one element.

        Raises:
            KeyError: when a model of the space was never observed.
        """

    def utilisations(self, service: ServiceModel, row: int) -> dict[str, float]:
        """Return the utilisation of each model while a point is saturated.

        Empty for a single model, which no other one keeps waiting.

        Raises:
            KeyError: when a model of the space was never observed.
        """
        return {}

    @abstractmethod
    def _forecast(self, service: ServiceModel) -> Forecast:
        """Forecast every point."""


class ModelForecaster(Forecaster):
    """Forecasts a space of a single model.

    Args:
        concurrency: requests outstanding while a configuration is saturated.
        simulate: seeded, so that the same arguments give the same estimate.
    """

    def __init__(
        self,
        space: SearchSpace,
        workload: Workload,
        concurrency: Callable[[ServingConfig], int],
        simulate: Simulate,
    ) -> None:
        super().__init__()
        self._targets = _targets(space, workload)
        self._concurrency = concurrency
        self._simulate = simulate
        self._estimates: dict[tuple[str, Position], tuple[ServiceCurve, StreamEstimate]] = {}

    def of_point(self, service: ServiceModel, row: int) -> Forecast:
        """Forecast one point, see `Forecaster.of_point`."""
        forecasts = []
        for target in self._targets:
            level = int(target.level_of[row])
            [curve] = service.curves([target.levels[level]])
            forecasts.append(self._simulated(target, {level: curve}, np.array([row])))
        return _joined(forecasts)

    def _forecast(self, service: ServiceModel) -> Forecast:
        curves = [service.curves(target.levels) for target in self._targets]
        pairs = list(zip(self._targets, curves, strict=True))
        rough = _joined([_closed_form(target, own) for target, own in pairs])
        # The best by capacity, and by saturation among equals.
        order = np.lexsort((-rough.saturation, -rough.capacity))
        rows = np.sort(order[:MOST_SIMULATED])
        exact = [self._simulated(target, dict(enumerate(own)), rows) for target, own in pairs]
        return refined(rough, rows, _joined(exact))

    def _simulated(
        self, target: _Target, curves: Mapping[int, ServiceCurve], rows: _Ints
    ) -> Forecast:
        """Forecast the points in `rows`; `curves` are by the index of a saturated level."""
        distinct, first, inverse = np.unique(
            target.points[rows], axis=0, return_index=True, return_inverse=True
        )
        own_curves = [curves[level] for level in target.level_of[rows][first]]
        estimates = [
            self._estimate(target, position, curve)
            for position, curve in zip(map(tuple, distinct.tolist()), own_curves, strict=True)
        ]
        return _forecast_of(estimates, own_curves, target.demand_per_second, inverse.reshape(-1))

    def _estimate(self, target: _Target, position: Position, curve: ServiceCurve) -> StreamEstimate:
        key = (target.stream.name, position)
        if key in self._estimates:
            old_curve, estimate = self._estimates[key]
            slowdown = _slowdown(old_curve, curve)
            if slowdown is not None:
                return estimate.times(1 / slowdown)
        draft = target.model.draft(position)
        model = draft.model()
        concurrency = self._concurrency(ServingConfig((model,), server=draft.server()))
        estimate = self._simulate(model, curve, target.stream, concurrency)
        self._estimates[key] = curve, estimate
        return estimate


def _targets(space: SearchSpace, workload: Workload) -> list[_Target]:
    by_model = {}
    for model, columns in space.columns():
        points = space.points[:, columns]
        by_model[model.model] = (model, points, *saturated_levels(model, points))
    demand: dict[str, float] = defaultdict(float)
    for stream in workload.streams:
        demand[stream.target] += stream.demand_per_second
    return [
        _Target(stream, *by_model[stream.target], demand[stream.target])
        for stream in workload.streams
    ]


def _slowdown(old: ServiceCurve, new: ServiceCurve) -> float | None:
    """Return the factor of all times from `old` to `new`; None where one factor does not do."""
    ratios = np.array(new.execution_ms) / np.array(old.execution_ms)
    moved_ms = np.array([new.outside_ms - old.outside_ms, new.wake_ms - old.wake_ms])
    factors = np.array(new.busy_factors) - np.array(old.busy_factors)
    changes = (ratios - 1, factors, moved_ms / old.execution_ms[0], [new.spread - old.spread])
    largest = max(np.abs(change).max() for change in changes)
    return float(ratios.mean()) if largest < _SAME else None


def _closed_form(target: _Target, curves: Sequence[ServiceCurve]) -> Forecast:
    """Forecast all points in closed form."""
    size, limit_ms = target.stream.batch_size, target.stream.limit.latency_ms
    estimates = [
        closed_form_estimate(curve, largest, size, limit_ms)
        for curve, (_, largest) in zip(curves, target.levels, strict=True)
    ]
    return _forecast_of(estimates, curves, target.demand_per_second, target.level_of)


def _forecast_of(
    estimates: Sequence[StreamEstimate],
    curves: Sequence[ServiceCurve],
    demand: float,
    of_point: _Ints,
) -> Forecast:
    """Return the forecast of points, each of which has one of the estimates, by its index."""
    return Forecast(
        np.array([each.saturation_per_second for each in estimates])[of_point] / demand,
        np.array([each.capacity_per_second for each in estimates])[of_point] / demand,
        np.array([each.floor_log_excess for each in estimates])[of_point],
        np.array([curve.log_sd for curve in curves])[of_point],
    )


def _joined(streams: Sequence[Forecast]) -> Forecast:
    """Join streams that are served at once: the first that reaches its limit decides for all."""
    saturation = np.stack([each.saturation for each in streams])
    sds = np.stack([each.log_sd for each in streams])
    first = saturation.argmin(axis=0)
    return Forecast(
        saturation.min(axis=0),
        np.min([each.capacity for each in streams], axis=0),
        np.max([each.floor_log_excess for each in streams], axis=0),
        np.take_along_axis(sds, first[None], axis=0)[0],
    )


def refined(rough: Forecast, rows: _Ints, exact: Forecast) -> Forecast:
    """Replace the closed form of simulated rows, and bring the other rows to the same scale."""
    saturation = rough.saturation * np.median(exact.saturation / rough.saturation[rows])
    served = (exact.capacity > 0) & (rough.capacity[rows] > 0)
    share = exact.capacity[served] / rough.capacity[rows][served]
    capacity = rough.capacity * (np.median(share) if served.any() else 1.0)
    floor_log_excess = rough.floor_log_excess.copy()
    saturation[rows], capacity[rows] = exact.saturation, exact.capacity
    floor_log_excess[rows] = exact.floor_log_excess
    return Forecast(saturation, capacity, floor_log_excess, rough.log_sd)

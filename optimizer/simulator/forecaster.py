"""Expectations of every point of a space, by simulating what the service times say. Pure.

Seconds for the whole space at first; afterwards only what new measurements changed is simulated
again. In a space of many points all are ranked by a closed form, and only the best are simulated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace, Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.simulator.closed_form import ClosedFormEstimate, in_closed_form
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.saturated_levels import saturated_levels
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ExecutionLayout
from optimizer.workload.streams import Stream, Workload

MOST_SIMULATED = 3_000
"""Points; more take too long at some milliseconds each."""

_SAME = 0.01
"""Change of a curve, as a share, below which a prediction is scaled and not made anew."""

_Ints = NDArray[np.int64]

Simulate = Callable[[ModelServing, ServiceCurve, Stream, int], ClosedFormEstimate]
"""Simulates a model served in some way and asked by a stream, with so many requests outstanding
under saturation."""


@dataclass(frozen=True)
class _Asked:
    """A stream and the points of the space as the model that it asks sees them.

    Attributes:
        points: positions of the model's own parameters, shape [points, own parameters].
        numbers: of the saturated level of each point, shape [points].
        demand_per_second: of all streams that ask the model.
    """

    stream: Stream
    model: ModelSpace
    points: _Ints
    numbers: _Ints
    levels: Sequence[tuple[ExecutionLayout, int]]
    demand_per_second: float


@dataclass(frozen=True)
class _Simulated:
    curve: ServiceCurve
    expectation: ClosedFormEstimate


class Forecaster:
    """Forecasts a space again and again, as more of its service times is known.

    Args:
        concurrency: requests outstanding while a configuration is saturated.
        simulate: seeded: the same answer for the same question.
    """

    def __init__(
        self,
        space: SearchSpace,
        workload: Workload,
        concurrency: Callable[[ServingConfig], int],
        simulate: Simulate,
    ) -> None:
        self._asked = list(map(_ask(space, workload), workload.streams))
        self._concurrency = concurrency
        self._simulate = simulate
        self._known: dict[tuple[str, Position], _Simulated] = {}
        self._last: tuple[ServiceModel, Forecast] | None = None

    def forecast(self, service: ServiceModel) -> Forecast:
        """What `service` lets expect; the same object as before where nothing was added to it.

        Raises:
            KeyError: when a model of the space was not observed in any way.
        """
        if self._last is None or self._last[0] != service:
            self._last = (service, self._forecast(service))
        return self._last[1]

    def of_point(self, service: ServiceModel, row: int) -> Forecast:
        """What `service` lets expect of one point of the space alone; arrays of one element.

        Raises:
            KeyError: when a model of the space was not observed in any way.
        """

        def simulated(asked: _Asked) -> Forecast:
            [curve] = service.curves([asked.levels[asked.numbers[row]]])
            return self._simulated(asked, lambda _: curve, np.array([row]))

        return _joined(list(map(simulated, self._asked)))

    def _forecast(self, service: ServiceModel) -> Forecast:
        curves = [service.curves(asked.levels) for asked in self._asked]
        pairs = list(zip(self._asked, curves, strict=True))
        rough = _joined([_roughly(asked, own) for asked, own in pairs])
        rows = _best(rough)
        exact = _joined([self._simulated(asked, own.__getitem__, rows) for asked, own in pairs])
        return _replaced(rough, rows, exact)

    def _simulated(
        self, asked: _Asked, curve: Callable[[int], ServiceCurve], rows: _Ints
    ) -> Forecast:
        """Of the points in `rows`.

        Args:
            curve: by the number of a saturated level.
        """
        distinct, first, inverse = np.unique(
            asked.points[rows], axis=0, return_index=True, return_inverse=True
        )
        of_own = [curve(number) for number in asked.numbers[rows][first]]
        found = [
            self._expected(asked, position, own)
            for position, own in zip(map(tuple, distinct.tolist()), of_own, strict=True)
        ]
        return _forecast_of(found, of_own, asked.demand_per_second, inverse.reshape(-1))

    def _expected(
        self, asked: _Asked, position: Position, curve: ServiceCurve
    ) -> ClosedFormEstimate:
        key = (asked.stream.name, position)
        known = self._known.get(key)
        if known is not None:
            slower = _slower(known.curve, curve)
            if slower is not None:
                return known.expectation.times(1 / slower)
        model, options = asked.model.serving(position), asked.model.options(position)
        outstanding = self._concurrency(ServingConfig((model,), server=options))
        expectation = self._simulate(model, curve, asked.stream, outstanding)
        self._known[key] = _Simulated(curve, expectation)
        return expectation


def _ask(space: SearchSpace, workload: Workload) -> Callable[[Stream], _Asked]:
    of_model = {}
    for model, columns in space.columns():
        points = space.points[:, columns]
        of_model[model.model] = (model, points, *saturated_levels(model, points))

    def ask(stream: Stream) -> _Asked:
        asking = [each for each in workload.streams if each.target == stream.target]
        return _Asked(
            stream, *of_model[stream.target], sum(each.demand_per_second for each in asking)
        )

    return ask


def _slower(old: ServiceCurve, new: ServiceCurve) -> float | None:
    """What all times of `old` are multiplied by; None where too much has changed to say so."""
    ratios = np.array(new.execution_ms) / np.array(old.execution_ms)
    moved_ms = np.array([new.outside_ms - old.outside_ms, new.wake_ms - old.wake_ms])
    factors = np.array(new.busy_factors) - np.array(old.busy_factors)
    changes = (ratios - 1, factors, moved_ms / old.execution_ms[0], [new.spread - old.spread])
    largest = max(np.abs(change).max() for change in changes)
    return float(ratios.mean()) if largest < _SAME else None


def _roughly(asked: _Asked, curves: Sequence[ServiceCurve]) -> Forecast:
    """Of all points, in closed form."""
    size, limit_ms = asked.stream.batch_size, asked.stream.limit.latency_ms
    found = [
        in_closed_form(curve, largest, size, limit_ms)
        for curve, (_, largest) in zip(curves, asked.levels, strict=True)
    ]
    return _forecast_of(found, curves, asked.demand_per_second, asked.numbers)


def _forecast_of(
    found: Sequence[ClosedFormEstimate],
    curves: Sequence[ServiceCurve],
    demand: float,
    of_point: _Ints,
) -> Forecast:
    """Of points that are each one of those in `found`, by number."""
    return Forecast(
        np.array([each.saturation_per_second for each in found])[of_point] / demand,
        np.array([each.capacity_per_second for each in found])[of_point] / demand,
        np.array([each.floor_log_excess for each in found])[of_point],
        np.array([curve.log_sd for curve in curves])[of_point],
    )


def _joined(streams: Sequence[Forecast]) -> Forecast:
    """Of streams that are served at once: what the first of them reaches ends it for all."""
    saturation = np.stack([each.saturation for each in streams])
    sds = np.stack([each.log_sd for each in streams])
    first = saturation.argmin(axis=0)
    return Forecast(
        saturation.min(axis=0),
        np.min([each.capacity for each in streams], axis=0),
        np.max([each.floor_log_excess for each in streams], axis=0),
        np.take_along_axis(sds, first[None], axis=0)[0],
    )


def _best(rough: Forecast) -> _Ints:
    """The rows that are simulated: by capacity, and by saturation among equals."""
    order = np.lexsort((-rough.saturation, -rough.capacity))
    return np.sort(order[:MOST_SIMULATED])


def _replaced(rough: Forecast, rows: _Ints, exact: Forecast) -> Forecast:
    """The simulated rows in the place of their closed form; the others to the same scale."""
    saturation = rough.saturation * np.median(exact.saturation / rough.saturation[rows])
    served = (exact.capacity > 0) & (rough.capacity[rows] > 0)
    share = exact.capacity[served] / rough.capacity[rows][served]
    capacity = rough.capacity * (np.median(share) if served.any() else 1.0)
    floor_log_excess = rough.floor_log_excess.copy()
    saturation[rows], capacity[rows] = exact.saturation, exact.capacity
    floor_log_excess[rows] = exact.floor_log_excess
    return Forecast(saturation, capacity, floor_log_excess, rough.log_sd)

"""Expected capacities of every point of a space of several models.

All points are estimated in closed form. The best are simulated once; what a simulation makes of a
closed form is kept as their ratio, as it hardly changes while service times become more precise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.simulator.execution_layout import ExecutionLayout, saturated_levels
from optimizer.simulator.forecast import Forecast, Forecaster, ModelForecaster, refined
from optimizer.simulator.network import Contention, Network
from optimizer.simulator.network_estimate import BatcherTimes, ClosedForm, closed_form
from optimizer.simulator.prediction import predict_capacity, predict_saturation
from optimizer.simulator.response_cache import answered_by_cache, cache_columns
from optimizer.simulator.served_network import network_of, offered_streams, served_network
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.stream_estimate import simulated_estimate
from optimizer.workload.streams import Workload

MOST_NETWORKS = 100
"""Points that are simulated at most; each takes some ten milliseconds."""

_REQUESTS = 2_000

_MOVED = math.log(1.15)
"""Change of the logarithm of a closed form from which a point is simulated again."""

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class _Model:
    """One executing model of the space.

    Attributes:
        level_of: index of the saturated level of each point, shape [points].
    """

    name: str
    level_of: _Ints
    levels: Sequence[tuple[ExecutionLayout, int]]


@dataclass(frozen=True)
class _Simulated:
    """A closed form, and what a simulation of the same service times gave."""

    form: tuple[float, float, float]
    saturation: float
    capacity: float
    floor_log_excess: float


def forecaster_of(
    space: SearchSpace,
    workload: Workload,
    concurrency: Callable[[ServingConfig], int],
    seed: int,
) -> Forecaster:
    """Return the forecaster of a space: a cheaper one where a single model executes requests.

    What a response cache answers passes a model by, so a model with one is a network.
    """
    if len(space.models) == 1 and not answered_by_cache(workload, space):
        return ModelForecaster(space, workload, concurrency, partial(simulated_estimate, seed=seed))
    return NetworkForecaster(space, workload, concurrency, seed)


class NetworkForecaster(Forecaster):
    """Forecasts a space of several models, or of one whose requests a response cache answers.

    Args:
        concurrency: requests outstanding while a configuration is saturated.
        seed: of the simulations.
    """

    def __init__(
        self,
        space: SearchSpace,
        workload: Workload,
        concurrency: Callable[[ServingConfig], int],
        seed: int,
    ) -> None:
        super().__init__()
        self._space = space
        self._workload = workload
        self._concurrency = concurrency
        self._seed = seed
        ensembles = (space.graph or NO_GRAPH).ensemble_names
        self._models = [
            _Model(model.model, *saturated_levels(model, space.points[:, columns]))
            for model, columns in space.columns()
            if model.model not in ensembles
        ]
        self._caching = _caching(space)
        self._simulations: dict[int, _Simulated] = {}

    def of_point(self, service: ServiceModel, row: int) -> Forecast:
        """Forecast one point, see `Forecaster.of_point`."""
        rows = np.array([row])
        return self._simulated(_Times.of(self._models, service, rows), rows)

    def utilisations(self, service: ServiceModel, row: int) -> dict[str, float]:
        """Return the utilisation of each model, see `Forecaster.utilisations`."""
        if len(self._models) == 1:
            return {}
        config = self._space.config(self._space.at(row))
        network = served_network(config, service, self._workload)
        mix = [stream.share for stream in offered_streams(self._workload)]
        outstanding = self._concurrency(config)
        saturation = predict_saturation(network, outstanding, self._seed, mix)
        return {each.name: each.utilisation for each in saturation.batchers}

    def _forecast(self, service: ServiceModel) -> Forecast:
        every = np.arange(len(self._space))
        times = _Times.of(self._models, service, every)
        rough = self._forecast_of(self._closed_form(times, every))
        # The best by capacity, and by saturation among equals.
        order = np.lexsort((-rough.saturation, -rough.capacity))
        rows = np.sort(order[:MOST_NETWORKS])
        return refined(rough, rows, self._simulated(times, rows))

    def _closed_form(self, times: _Times, rows: _Ints) -> ClosedForm:
        """Return the closed form; points whose cache answers otherwise are other networks."""
        form, caching = np.empty((4, len(rows))), self._caching[rows]
        for alike in np.unique(caching):
            own = caching == alike
            part = closed_form(
                [
                    each.batcher_times(rows[own], self._space.limits.request_size)
                    for each in times.models
                ],
                self._network(times, int(rows[own][0])),
                offered_streams(self._workload),
            )
            form[:, own] = part.saturation, part.capacity, part.floor_log_excess, part.log_sd
        return ClosedForm(*form)

    def _forecast_of(self, form: ClosedForm) -> Forecast:
        demand = self._workload.demand_per_second
        saturation, capacity = form.saturation / demand, form.capacity / demand
        return Forecast(saturation, capacity, form.floor_log_excess, form.log_sd)

    def _simulated(self, times: _Times, rows: _Ints) -> Forecast:
        """Forecast points by simulations, or by the ratio of an earlier one to its closed form."""
        form = self._closed_form(times, rows)
        triples = zip(form.saturation, form.capacity, form.floor_log_excess, strict=True)
        result = []
        for row, (saturation, capacity, excess) in zip(rows.tolist(), triples, strict=True):
            now = (float(saturation), float(capacity), float(excess))
            before = self._simulations.get(row)
            if before is None or _moved(before.form, now):
                before = self._simulations[row] = self._simulation(times, row, now)
            result.append(_scaled(before, now))
        own = np.array(result)
        return self._forecast_of(ClosedForm(own[:, 0], own[:, 1], own[:, 2], form.log_sd))

    def _simulation(self, times: _Times, row: int, form: tuple[float, float, float]) -> _Simulated:
        config = self._space.config(self._space.at(row))
        offered = offered_streams(self._workload)
        found = predict_capacity(
            self._network(times, row), offered, self._concurrency(config), self._seed, _REQUESTS
        )
        saturation = found.saturation.per_second
        return _Simulated(form, saturation, found.per_second, found.floor_log_excess)

    def _network(self, times: _Times, row: int) -> Network:
        config = self._space.config(self._space.at(row))
        curves = {own.model.name: own.curve(row) for own in times.models}
        hits = times.service.hits(config, self._workload)
        return network_of(config, curves, times.contention, self._workload, hits)


def _caching(space: SearchSpace) -> _Ints:
    """Return codes of the points, shape [points]: equal where the cache of all models is."""
    columns = cache_columns(space)
    _, codes = np.unique(space.points[:, columns], axis=0, return_inverse=True)
    return np.asarray(codes.reshape(-1), dtype=np.int64)


def _moved(before: tuple[float, float, float], now: tuple[float, float, float]) -> bool:
    """Return whether a closed form is too far from the one beside a simulation."""
    if (before[1] > 0) != (now[1] > 0):
        return True
    moved = [abs(math.log(now[0] / before[0])), abs(now[2] - before[2])]
    if now[1] > 0:
        moved.append(abs(math.log(now[1] / before[1])))
    return max(moved) > _MOVED


def _scaled(simulated: _Simulated, form: tuple[float, float, float]) -> tuple[float, float, float]:
    """Return saturation, capacity and excess by the ratio of a simulation to its closed form."""
    saturation = simulated.saturation * form[0] / simulated.form[0]
    capacity = simulated.capacity
    if form[1] > 0:
        capacity *= form[1] / simulated.form[1]
    excess = simulated.floor_log_excess + form[2] - simulated.form[2]
    return saturation, min(capacity, saturation), excess


@dataclass(frozen=True)
class _ModelTimes:
    """The service curves of one model's levels."""

    model: _Model
    curves: dict[int, ServiceCurve]

    def curve(self, row: int) -> ServiceCurve:
        """Return the curve of a point."""
        return self.curves[int(self.model.level_of[row])]

    def batcher_times(self, rows: _Ints, request_size: int) -> BatcherTimes:
        """Return the times of the batches of points."""
        levels, inverse = np.unique(self.model.level_of[rows], return_inverse=True)
        largest = [self.model.levels[level][1] for level in levels]
        curves = [self.curves[int(level)] for level in levels]
        return BatcherTimes.of(curves, largest, request_size).at(inverse.reshape(-1))


@dataclass(frozen=True)
class _Times:
    """The service curves of all models, their contention, and where both are from."""

    models: tuple[_ModelTimes, ...]
    contention: Contention
    service: ServiceModel

    @classmethod
    def of(cls, models: Sequence[_Model], service: ServiceModel, rows: _Ints) -> _Times:
        """Return the times of the levels of these points."""
        own = []
        for model in models:
            levels = np.unique(model.level_of[rows]).tolist()
            curves = service.curves([model.levels[level] for level in levels])
            own.append(_ModelTimes(model, dict(zip(levels, curves, strict=True))))
        contention = service.contention([model.name for model in models])
        return cls(tuple(own), contention, service)

"""Service times of every way of serving, from those that were measured. Pure.

A Bayesian regression (a Gaussian process) on the logarithm of the time that an execution occupies
an instance, see `service_effects`. Memory is no part of it: what an instance needs is known from
the accuracy gate, and `SearchSpace.within_memory` leaves out what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from optimizer.configuration.serving_config import ModelServing, ServerOptions
from optimizer.simulator.service_curve import EVEN, ServiceCurve, Unevenness
from optimizer.simulator.service_effects import Floats
from optimizer.simulator.service_observation import (
    ExecutionLayout,
    ServiceObservation,
    execution_layout,
)
from optimizer.simulator.service_regression import Regression

_UNTOUCHED = ServerOptions()


@dataclass(frozen=True)
class ServiceModel:
    """What measured saturated levels say of the service times of every way of serving."""

    observations: tuple[ServiceObservation, ...]
    unevenness: Unevenness = EVEN

    def curve(self, model: ModelServing, server: ServerOptions = _UNTOUCHED) -> ServiceCurve:
        """The service curve of a model that is served in this way, measured or not.

        Raises:
            KeyError: when the model was not observed in any way.
        """
        return self.curves([(execution_layout(model, server), model.max_batch_size)])[0]

    def curves(self, wanted: Sequence[tuple[ExecutionLayout, int]]) -> list[ServiceCurve]:
        """The curves of ways of serving up to their largest batch sizes, see `curve`."""
        grid = [(way, size) for way, largest in wanted for size in _sizes(largest)]
        grid += [(way.one_instance, largest) for way, largest in wanted]
        log_ms, sd = self._predict(grid)
        curves, start, alone = [], 0, len(grid) - len(wanted)
        for at, (way, largest) in enumerate(wanted):
            sizes = _sizes(largest)
            end = start + len(sizes)
            curves.append(
                ServiceCurve(
                    batch_sizes=sizes,
                    execution_ms=tuple(np.exp(log_ms[start:end]).tolist()),
                    spread=self.unevenness.spread,
                    busy_factors=_busy_factors(
                        way.executing, math.exp(log_ms[alone + at] - log_ms[end - 1])
                    ),
                    outside_ms=self.outside_ms,
                    wake_ms=self.unevenness.wake_of(way.artifact.runtime),
                    # Of the largest batch, which is what saturation executes.
                    log_sd=float(sd[end - 1]),
                )
            )
            start = end
        return curves

    def _predict(self, grid: Sequence[tuple[ExecutionLayout, int]]) -> tuple[Floats, Floats]:
        log_ms, sd = np.empty(len(grid)), np.empty(len(grid))
        for name in dict.fromkeys(way.model for way, _ in grid):
            own = np.array([way.model == name for way, _ in grid])
            rows = [row for row in grid if row[0].model == name]
            regression = self._regressions[name]
            log_ms[own], sd[own] = regression.predict(
                [way for way, _ in rows], [size for _, size in rows]
            )
        return log_ms, sd

    @cached_property
    def outside_ms(self) -> float:
        """What a request spends between client and server, median over the levels."""
        found = [o.network_ms for o in self.observations if o.network_ms is not None]
        return median(found) if found else 0.0

    @cached_property
    def _regressions(self) -> dict[str, Regression]:
        return {
            name: Regression([o for o in self.observations if o.way.model == name])
            for name in dict.fromkeys(o.way.model for o in self.observations)
        }


def _sizes(largest: int) -> tuple[int, ...]:
    """1, 2, 4, ... and the largest itself."""
    powers = [1 << n for n in range(largest.bit_length())]
    return tuple(powers) if powers[-1] == largest else (*powers, largest)


def _busy_factors(instances: int, alone: float) -> tuple[float, ...]:
    """From what one busy instance takes, relative to all busy, in a straight line."""
    if instances == 1:
        return (1.0,)
    steps = np.linspace(min(alone, 1.0), 1.0, instances)
    return tuple(steps.tolist())


def fitted(observations: Iterable[ServiceObservation]) -> ServiceModel:
    """The model of what was observed."""
    return ServiceModel(tuple(observations))

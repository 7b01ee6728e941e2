"""Service times of every execution layout, from those that were measured.

A Bayesian regression (a Gaussian process) on the logarithm of the time that an execution occupies
an instance, described in `service_effects`. Memory is no part of it: the accuracy gate measures the
memory of an instance, and `SearchSpace.within_memory` leaves out what does not fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from optimizer.configuration.serving_config import ModelServing, ServerOptions, ServingConfig
from optimizer.simulator.cached_service import CachedLevel, Hits, hits_of
from optimizer.simulator.execution_layout import ExecutionLayout, execution_layout
from optimizer.simulator.network import NO_CONTENTION, Contention
from optimizer.simulator.service_curve import DEFAULT_VARIATION, ServiceCurve, ServiceVariation
from optimizer.simulator.service_effects import Floats
from optimizer.simulator.service_observation import ServiceObservation
from optimizer.simulator.service_regression import Regression
from optimizer.workload.streams import Workload

_DEFAULT_OPTIONS = ServerOptions()


@dataclass(frozen=True)
class ServiceModel:
    """The service times of every execution layout, learnt from saturated levels.

    Attributes:
        cached_levels: saturated levels in which a response cache answered.
    """

    observations: tuple[ServiceObservation, ...]
    variation: ServiceVariation = DEFAULT_VARIATION
    cached_levels: tuple[CachedLevel, ...] = ()

    def curve(self, model: ModelServing, server: ServerOptions = _DEFAULT_OPTIONS) -> ServiceCurve:
        """Return the service curve of a served model, measured or not.

        Raises:
            KeyError: when the model was never observed.
        """
        return self.curves([(execution_layout(model, server), model.max_batch_size)])[0]

    def curves(self, levels: Sequence[tuple[ExecutionLayout, int]]) -> list[ServiceCurve]:
        """Return the curves of execution layouts up to their largest batch sizes.

        Raises:
            KeyError: when a model was never observed.
        """
        grid = [(layout, size) for layout, largest in levels for size in _sizes(largest)]
        grid += [(layout.one_instance, largest) for layout, largest in levels]
        log_ms, sd = self._predict(grid)
        wake_ms = dict(self.variation.wake_ms)
        curves, start, alone = [], 0, len(grid) - len(levels)
        for index, (layout, largest) in enumerate(levels):
            sizes = _sizes(largest)
            end = start + len(sizes)
            curves.append(
                ServiceCurve(
                    batch_sizes=sizes,
                    execution_ms=tuple(np.exp(log_ms[start:end]).tolist()),
                    spread=self.variation.spread,
                    busy_factors=_busy_factors(
                        layout.executing, math.exp(log_ms[alone + index] - log_ms[end - 1])
                    ),
                    outside_ms=self.outside_ms,
                    wake_ms=wake_ms.get(layout.artifact.runtime, 0.0),
                    # Of the largest batch, which is what saturation executes.
                    log_sd=float(sd[end - 1]),
                )
            )
            start = end
        return curves

    def log_ms(self, layout: ExecutionLayout, batch_size: int) -> float:
        """Return the logarithm of the time (ms) of one execution.

        Raises:
            KeyError: when the model was never observed.
        """
        return float(self._predict([(layout, batch_size)])[0][0])

    @property
    def models(self) -> frozenset[str]:
        """Names of the models that were observed."""
        return frozenset(each.layout.model for each in self.observations)

    def hits(self, config: ServingConfig, workload: Workload) -> Hits:
        """Return what the response cache of a configuration answers, see `hits_of`."""
        return hits_of(self.cached_levels, config, workload)

    def contention(self, models: Sequence[str]) -> Contention:
        """Return how much executions of these models slow each other down.

        Raises:
            KeyError: when a model was never observed.
        """
        if len(models) == 1:
            return NO_CONTENTION
        layouts = {o.layout.model: o.layout for o in self.observations}
        pairs = [self._regressions[name].pairs(layouts[name]) for name in models]
        return Contention(tuple(tuple(own.get(other, 0.0) for other in models) for own in pairs))

    def _predict(self, grid: Sequence[tuple[ExecutionLayout, int]]) -> tuple[Floats, Floats]:
        log_ms, sd = np.empty(len(grid)), np.empty(len(grid))
        for name in dict.fromkeys(layout.model for layout, _ in grid):
            own = np.array([layout.model == name for layout, _ in grid])
            layouts, sizes = zip(*(row for row in grid if row[0].model == name), strict=True)
            log_ms[own], sd[own] = self._regressions[name].predict(layouts, sizes)
        return log_ms, sd

    @cached_property
    def outside_ms(self) -> float:
        """Time of a request between client and server, median over the levels."""
        times_ms = [o.network_ms for o in self._nearest if o.network_ms is not None]
        return median(times_ms) if times_ms else 0.0

    @property
    def _nearest(self) -> Sequence[ServiceObservation]:
        """The observations on this hardware; those elsewhere where there are none."""
        here = [o for o in self.observations if not o.layout.elsewhere]
        return here or self.observations

    @cached_property
    def _regressions(self) -> dict[str, Regression]:
        return {
            name: Regression([o for o in self.observations if o.layout.model == name])
            for name in dict.fromkeys(o.layout.model for o in self.observations)
        }


def _sizes(largest: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and the largest itself."""
    powers = [1 << n for n in range(largest.bit_length())]
    return tuple(powers) if powers[-1] == largest else (*powers, largest)


def _busy_factors(instances: int, alone: float) -> tuple[float, ...]:
    """Interpolate from what one busy instance takes, relative to all busy, in a straight line."""
    if instances == 1:
        return (1.0,)
    return tuple(np.linspace(min(alone, 1.0), 1.0, instances).tolist())

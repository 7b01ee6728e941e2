"""What service times on other hardware tell of those here: their shape, but not their scale."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from optimizer.simulator.execution_layout import ExecutionLayout
from optimizer.simulator.service_curve import ServiceVariation
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation


@dataclass(frozen=True)
class ServicePrior:
    """Service times of the same models, learnt on other hardware.

    Attributes:
        study: name of the study that learnt them.
        run_seconds: mean time of one of its calibration runs.
    """

    study: str
    service: ServiceModel
    run_seconds: float

    @property
    def observations(self) -> tuple[ServiceObservation, ...]:
        """The observations, as those of other hardware."""
        return tuple(
            replace(each, layout=replace(each.layout, elsewhere=True))
            for each in self.service.observations
        )

    def variation(self, service: ServiceModel, fitted: ServiceVariation) -> ServiceVariation:
        """Return a variation with the wake-up times of runtimes that no light load here has shown.

        Args:
            service: service times here, which tell the scale.
            fitted: by the light loads here.
        """
        shown = {runtime for runtime, _ in fitted.wake_ms}
        layouts = {each.layout.artifact.runtime: each.layout for each in self.service.observations}
        lent = [
            (runtime, ms * self._slowdown(service, layouts[runtime]))
            for runtime, ms in self.service.variation.wake_ms
            if runtime not in shown and runtime in layouts
        ]
        return replace(fitted, wake_ms=(*fitted.wake_ms, *lent))

    def _slowdown(self, service: ServiceModel, layout: ExecutionLayout) -> float:
        return math.exp(service.log_ms(layout, 1) - self.service.log_ms(layout, 1))

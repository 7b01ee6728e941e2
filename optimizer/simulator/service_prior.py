"""What service times on other hardware tell of those here: their shape, but not their scale."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

from optimizer.simulator.execution_layout import ExecutionLayout
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

    def scaled(self, service: ServiceModel, shown: Collection[str]) -> ServiceModel:
        """Return service times here with the wake-up times of the other hardware, to scale.

        Args:
            service: by all that was observed here, which tells the scale.
            shown: runtimes whose wake-up times light loads here have shown, and which keep them.
        """
        layouts = {each.layout.artifact.runtime: each.layout for each in self.service.observations}
        own = tuple(wake for wake in service.variation.wake_ms if wake[0] in shown)
        lent = tuple(
            (runtime, ms * self._slowdown(service, layouts[runtime]))
            for runtime, ms in self.service.variation.wake_ms
            if runtime not in shown and runtime in layouts
        )
        return replace(service, variation=replace(service.variation, wake_ms=(*own, *lent)))

    def _slowdown(self, service: ServiceModel, layout: ExecutionLayout) -> float:
        return math.exp(service.log_ms(layout, 1) - self.service.log_ms(layout, 1))

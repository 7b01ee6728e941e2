"""The forecast that a study learns from its calibration and its trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property

from optimizer.measurement.trial_record import TrialRecord
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import observe
from optimizer.simulator.service_variation import fit_variation, light_loads
from optimizer.workload.streams import Workload


def calibrated(calibration: Iterable[TrialRecord], workload: Workload) -> ServiceModel:
    """Return service times fitted to the saturated and light levels of calibration runs."""
    runs = [(r.config, r.measurement.levels) for r in calibration if r.measurement is not None]
    observations = [
        each for config, (saturated, *light) in runs for each in observe(config, saturated, *light)
    ]
    service = ServiceModel(tuple(observations))
    loads = [
        load
        for config, (_, *light) in runs
        for level in light
        for load in light_loads(config, level, workload)
    ]
    return replace(service, variation=fit_variation(service, loads))


def with_trials(service: ServiceModel, trials: Iterable[TrialRecord]) -> ServiceModel:
    """Return service times with the saturation levels of the trials added."""
    more = (
        each
        for record in trials
        if record.measurement is not None
        for each in observe(record.config, record.measurement.levels[0])
    )
    return replace(service, observations=(*service.observations, *more))


class LearntForecast:
    """A `ForecastSource` that is updated when there is a new record.

    Args:
        calibration: the runs of the `CalibratePhase`.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        calibration: Sequence[TrialRecord],
        workload: Workload,
    ) -> None:
        self._forecaster = forecaster
        self._calibration = calibration
        self._workload = workload
        self._known: tuple[int, Forecast] | None = None

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Return the forecast of every point after these trials."""
        if self._known is None or self._known[0] != len(trials):
            service = with_trials(self._calibrated, trials)
            self._known = len(trials), self._forecaster.forecast(service)
        return self._known[1]

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Return the forecast of one row after these trials."""
        return self._forecaster.of_point(with_trials(self._calibrated, trials), row)

    @cached_property
    def _calibrated(self) -> ServiceModel:
        return calibrated(self._calibration, self._workload)

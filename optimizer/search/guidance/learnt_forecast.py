"""The forecast that a study learns: from its calibration, and from every trial since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property

from optimizer.search.history import History
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.forecaster import Forecaster
from optimizer.simulator.service_curve import EVEN, Unevenness
from optimizer.simulator.service_model import ServiceModel, fitted
from optimizer.simulator.service_observation import ServiceObservation, observed
from optimizer.simulator.unevenness import light_loads, unevenness_of
from optimizer.trial_record import TrialRecord
from optimizer.workload import Workload


def learnt_unevenness(calibration: Sequence[TrialRecord], workload: Workload) -> Unevenness:
    """How uneven executions are, by the light load that each calibration run ends with."""
    service = learnt_service(calibration)
    return unevenness_of(
        service,
        [
            load
            for record in calibration
            if record.measurement is not None
            for level in record.measurement.levels[1:]
            for load in light_loads(record.config, level, workload)
        ],
    )


def learnt_service(records: Iterable[TrialRecord], unevenness: Unevenness = EVEN) -> ServiceModel:
    """Service times by the saturated level that each measurement began with."""
    return fitted(_observed(records), unevenness)


def _observed(records: Iterable[TrialRecord]) -> Iterable[ServiceObservation]:
    for record in records:
        if record.measurement is not None:
            yield from observed(record.config, record.measurement.levels[0])


class LearntForecast:
    """Forecasts anew when the study has a record more.

    Args:
        calibration: the runs before the search, see `CalibratePhase`.
        history: the same as the search adds to.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        calibration: Sequence[TrialRecord],
        history: History,
        workload: Workload,
    ) -> None:
        self._forecaster = forecaster
        self._calibration = calibration
        self._history = history
        self._workload = workload
        self._known: tuple[int, Forecast] | None = None

    def __call__(self) -> Forecast:
        """What is expected of every point by now."""
        records = [*self._calibration, *self._history.records]
        if self._known is None or self._known[0] != len(records):
            service = learnt_service(records, self._unevenness)
            self._known = len(records), self._forecaster.forecast(service)
        return self._known[1]

    @cached_property
    def _unevenness(self) -> Unevenness:
        return learnt_unevenness(self._calibration, self._workload)

"""The forecast that a study learns: from its calibration, and from every trial since."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from optimizer.search.history import History
from optimizer.simulator.forecast import Forecast
from optimizer.simulator.forecaster import Forecaster
from optimizer.simulator.service_model import ServiceModel, fitted
from optimizer.simulator.service_observation import observed
from optimizer.trial_record import TrialRecord


def learnt_service(records: Iterable[TrialRecord]) -> ServiceModel:
    """Service times by the saturated level that each measurement began with."""
    return fitted(
        each
        for record in records
        if record.measurement is not None
        for each in observed(record.config, record.measurement.levels[0])
    )


class LearntForecast:
    """Forecasts anew when the study has a record more.

    Args:
        calibration: the saturated runs before the search.
        history: the same as the search adds to.
    """

    def __init__(
        self, forecaster: Forecaster, calibration: Sequence[TrialRecord], history: History
    ) -> None:
        self._forecaster = forecaster
        self._calibration = calibration
        self._history = history
        self._known: tuple[int, Forecast] | None = None

    def __call__(self) -> Forecast:
        """What is expected of every point by now."""
        records = [*self._calibration, *self._history.records]
        if self._known is None or self._known[0] != len(records):
            self._known = len(records), self._forecaster.forecast(learnt_service(records))
        return self._known[1]

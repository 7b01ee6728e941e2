"""The forecast that a study learns from its calibration and its trials."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.search.surrogate.idle_models import OpenRows, open_rows
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.network_forecast import NetworkForecaster
from optimizer.simulator.overlap import overlaps_of, with_overlaps
from optimizer.simulator.service_curve import DEFAULT_VARIATION
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation, executing, observe
from optimizer.simulator.service_prior import ServicePrior
from optimizer.simulator.service_variation import fit_variation, light_load
from optimizer.workload.streams import Workload

_ROUNDS = 2
"""Rounds in which service times and what executes at the same time settle."""


def calibrated(
    calibration: Iterable[TrialRecord], workload: Workload, prior: ServicePrior | None = None
) -> ServiceModel:
    """Return service times fitted to the saturated and light levels of calibration runs.

    Args:
        prior: service times on other hardware; None without any.
    """
    runs = [
        (record.config, record.measurement.levels)
        for record in calibration
        if record.measurement is not None
    ]
    lent = prior.observations if prior is not None else ()
    variation = prior.service.variation if prior is not None else DEFAULT_VARIATION
    seen = [_observed(config, levels) for config, levels in runs]
    service = ServiceModel((*chain.from_iterable(seen), *lent), variation)
    for _ in range(_ROUNDS if any(len(executing(config)) > 1 for config, _ in runs) else 0):
        seen = [_observed(config, levels, service, workload) for config, levels in runs]
        service = ServiceModel((*chain.from_iterable(seen), *lent), variation)
    loads = [
        load
        for config, (_, *light) in runs
        for level in light
        if (load := light_load(config, level, workload)) is not None
    ]
    if loads:
        variation = fit_variation(service, loads)
        if prior is not None:
            variation = prior.variation(service, variation)
    return replace(service, variation=variation, shared_cores=service.cores)


def with_trials(
    service: ServiceModel, trials: Iterable[TrialRecord], workload: Workload
) -> ServiceModel:
    """Return service times with the saturation levels of the trials added."""
    more = (
        _observed(record.config, record.measurement.levels[:1], service, workload)
        for record in trials
        if record.measurement is not None
    )
    return replace(service, observations=(*service.observations, *chain.from_iterable(more)))


def _observed(
    config: ServingConfig,
    levels: Sequence[LoadLevel],
    service: ServiceModel | None = None,
    workload: Workload | None = None,
) -> tuple[ServiceObservation, ...]:
    """Return what a saturated level and perhaps a light one show.

    Args:
        service: service times so far, which tell what executed at the same time.
    """
    observations = observe(config, *levels)
    if service is None or workload is None or len(executing(config)) == 1:
        return observations
    if not {model.name for model in executing(config)} <= service.models:
        return observations
    count = len(observe(config, levels[0]))
    parts = (observations[:count], observations[count:])
    overlapping = (
        with_overlaps(own, overlaps_of(config, level, service, workload, concurrency(config)))
        for own, level in zip(parts, levels, strict=False)
    )
    return tuple(chain.from_iterable(overlapping))


class LearntForecast:
    """A `ForecastSource` that is updated when there is a new record.

    Args:
        calibration: the runs of the `CalibratePhase`.
        prior: service times on other hardware; None without any.
    """

    def __init__(
        self,
        forecaster: Forecaster | NetworkForecaster,
        calibration: Sequence[TrialRecord],
        workload: Workload,
        prior: ServicePrior | None = None,
    ) -> None:
        self._forecaster = forecaster
        self._calibration = calibration
        self._workload = workload
        self._prior = prior
        self._known: tuple[int, Forecast] | None = None

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Return the forecast of every point after these trials."""
        if self._known is None or self._known[0] != len(trials):
            self._known = len(trials), self._forecaster.forecast(self._service(trials))
        return self._known[1]

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Return the forecast of one row after these trials."""
        return self._forecaster.of_point(self._service(trials), row)

    def open_rows(self, space: SearchSpace) -> OpenRows | None:
        """Return the rows that are worth a search after the calibration; None for all of them."""
        forecaster, service = self._forecaster, self._calibrated
        if isinstance(forecaster, Forecaster):
            return None
        return open_rows(space, self.after(()), partial(forecaster.utilisations, service))

    def _service(self, trials: Sequence[TrialRecord]) -> ServiceModel:
        for record in trials:
            if record.number not in self._observed:
                base = self._calibrated
                own = with_trials(base, [record], self._workload).observations
                self._observed[record.number] = own[len(base.observations) :]
        more = chain.from_iterable(self._observed[record.number] for record in trials)
        base = self._calibrated
        return replace(base, observations=(*base.observations, *more))

    @cached_property
    def _observed(self) -> dict[int, tuple[ServiceObservation, ...]]:
        """What each trial shows, by its number."""
        return {}

    @cached_property
    def _calibrated(self) -> ServiceModel:
        return calibrated(self._calibration, self._workload, self._prior)

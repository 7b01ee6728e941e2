"""The forecast that a study learns from its calibration and its trials."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.search.surrogate.idle_models import OpenRows, open_rows
from optimizer.simulator.cached_service import CachedLevel, cached_level
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.overlap import overlaps_of, with_overlaps
from optimizer.simulator.service_curve import DEFAULT_VARIATION
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import ServiceObservation, executing, observe
from optimizer.simulator.service_prior import ServicePrior
from optimizer.simulator.service_variation import fit_variation, light_load
from optimizer.workload.streams import Workload

MOST_TRIALS = 100
"""Trials that service times are learnt from, in a search the first: later ones change them little,
and the time and the memory that they take grow with the cube and the square of their number."""

_ROUNDS = 2
"""Rounds in which service times and what executes at the same time settle."""


def calibrated(
    calibration: Iterable[TrialRecord], workload: Workload, prior: ServicePrior | None = None
) -> ServiceModel:
    """Return service times fitted to the saturated and light levels of calibration runs.

    Args:
        calibration: also runs of configurations of some of the models, see `parts_alone`.
        prior: service times on other hardware; None without any.
    """
    runs = [
        (record.config, record.measurement.levels)
        for record in calibration
        if record.measurement is not None
    ]
    lent = prior.observations if prior is not None else ()
    variation = prior.service.variation if prior is not None else DEFAULT_VARIATION
    cached = tuple(_cached((config, levels[0]) for config, levels in runs))
    seen = [_observed(config, levels) for config, levels in runs]
    first = (*chain.from_iterable(seen), *lent)
    service = ServiceModel(first, variation, cached_levels=cached)
    for _ in range(_ROUNDS if any(len(executing(config)) > 1 for config, _ in runs) else 0):
        seen = [_observed(config, levels, service, workload) for config, levels in runs]
        service = replace(service, observations=(*chain.from_iterable(seen), *lent))
    loads = [
        load
        for config, (_, *light) in runs
        for level in light
        if (load := light_load(config, level, _sent_to(config, workload))) is not None
    ]
    if loads:
        variation = fit_variation(service, loads)
    return replace(service, variation=variation)


def to_scale(
    service: ServiceModel, prior: ServicePrior | None, calibration: Iterable[TrialRecord]
) -> ServiceModel:
    """Return service times with what other hardware tells of light loads, in the scale of these.

    Args:
        calibration: the runs here, whose light loads count for more.
    """
    if prior is None:
        return service
    shown = {
        model.artifact.runtime
        for record in calibration
        if record.measurement is not None and len(record.measurement.levels) > 1
        for model in executing(record.config)
    }
    return prior.scaled(service, shown)


def with_trials(
    service: ServiceModel, trials: Iterable[TrialRecord], workload: Workload
) -> ServiceModel:
    """Return service times with the saturation levels of the trials added."""
    runs = [
        (record.config, record.measurement.levels[0])
        for record in trials
        if record.measurement is not None
    ]
    more = (_observed(config, [level], service, workload) for config, level in runs)
    return replace(
        service,
        observations=(*service.observations, *chain.from_iterable(more)),
        cached_levels=(*service.cached_levels, *_cached(runs)),
    )


def _cached(saturated: Iterable[tuple[ServingConfig, LoadLevel]]) -> Iterator[CachedLevel]:
    """Yield what levels show of a response cache."""
    for config, level in saturated:
        if (own := cached_level(config, level)) is not None:
            yield own


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
    workload = _sent_to(config, workload)
    count = len(observe(config, levels[0]))
    parts = (observations[:count], observations[count:])
    overlapping = (
        with_overlaps(own, overlaps_of(config, level, service, workload, concurrency(config)))
        for own, level in zip(parts, levels, strict=False)
    )
    return tuple(chain.from_iterable(overlapping))


def _sent_to(config: ServingConfig, workload: Workload) -> Workload:
    """Return what a configuration of all or some of the models was sent."""
    return workload.to([model.name for model in config.models])


_Shown = tuple[tuple[ServiceObservation, ...], tuple[CachedLevel, ...]]
"""What a trial shows of service times and of a response cache."""


@dataclass
class _Calibrated:
    """What follows from a number of calibration runs.

    Attributes:
        shown: by each trial, by its number.
        last: service times after a number of trials.
    """

    runs: int
    service: ServiceModel
    shown: dict[int, _Shown] = field(default_factory=dict)
    last: tuple[int, ServiceModel] | None = None
    opened: OpenRows | None = None
    median_log_sd: float | None = None


class LearntForecast:
    """A `ForecastSource` that is updated when there is a new record.

    Args:
        calibration: the runs of the `CalibratePhase`; those that end later are added to it.
        prior: service times on other hardware; None without any.
    """

    def __init__(
        self,
        forecaster: Forecaster,
        calibration: Sequence[TrialRecord],
        workload: Workload,
        prior: ServicePrior | None = None,
    ) -> None:
        self._forecaster = forecaster
        self._calibration = calibration
        self._workload = workload
        self._prior = prior
        self._last: _Calibrated | None = None

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        """Return the forecast of every point after these trials."""
        return self._forecaster.forecast(self._service(trials))

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        """Return the forecast of one row after these trials."""
        return self._forecaster.of_point(self._service(trials), row)

    def open_rows(self, space: SearchSpace) -> OpenRows:
        """Return the rows that are worth a search after the calibration."""
        calibrated = self._calibrated
        if calibrated.opened is None:
            calibrated.opened = open_rows(space, self._forecaster, calibrated.service)
        return calibrated.opened

    def median_log_sd(self) -> float:
        """Return the uncertainty of the forecast after the calibration, without any trial.

        It is the median standard deviation of the logarithm of the saturation rates, infinite
        before every model of the space was measured.
        """
        calibrated = self._calibrated
        if calibrated.median_log_sd is None:
            try:
                calibrated.median_log_sd = float(np.median(self.after(()).log_sd))
            except KeyError:
                calibrated.median_log_sd = math.inf
        return calibrated.median_log_sd

    def _service(self, trials: Sequence[TrialRecord]) -> ServiceModel:
        """Return service times after these trials; the same object for as many as last time."""
        trials, calibrated = trials[:MOST_TRIALS], self._calibrated
        if calibrated.last is None or calibrated.last[0] != len(trials):
            calibrated.last = len(trials), self._new_service(calibrated, trials)
        return calibrated.last[1]

    def _new_service(self, calibrated: _Calibrated, trials: Sequence[TrialRecord]) -> ServiceModel:
        base = calibrated.service
        for record in trials:
            if record.number not in calibrated.shown:
                own = with_trials(base, [record], self._workload)
                calibrated.shown[record.number] = (
                    own.observations[len(base.observations) :],
                    own.cached_levels[len(base.cached_levels) :],
                )
        shown = [calibrated.shown[record.number] for record in trials]
        service = replace(
            base,
            observations=(*base.observations, *(x for own, _ in shown for x in own)),
            cached_levels=(*base.cached_levels, *(x for _, own in shown for x in own)),
        )
        return to_scale(service, self._prior, self._calibration)

    @property
    def _calibrated(self) -> _Calibrated:
        """What follows from the calibration runs that have ended."""
        runs = len(self._calibration)
        if self._last is None or self._last.runs != runs:
            service = calibrated(self._calibration, self._workload, self._prior)
            self._last = _Calibrated(runs, service)
        return self._last

"""The strategies that propose a study's configurations, by the name of their sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.level_runner import concurrency
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.samplers import CALIBRATED, SAMPLERS, Strategy
from optimizer.search.surrogate.acquisition import AcquisitionPolicy, ForecastSource, no_forecast
from optimizer.search.surrogate.idle_models import OpenRows
from optimizer.search.surrogate.learnt_forecast import LearntForecast
from optimizer.simulator.calibration import (
    LIGHT_RUNS,
    cached_point,
    calibration_points,
    executed_points,
    parts_alone,
)
from optimizer.simulator.network_forecast import forecaster_of
from optimizer.simulator.service_observation import executing
from optimizer.simulator.service_prior import ServicePrior
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher
from optimizer.study.history import History
from optimizer.study.search_status import stop_at_regret
from optimizer.workload.streams import Workload

_PRECISE_SD = 0.4
"""Uncertainty of the forecast from which it tells good configurations from others, so that a worker
that no calibration run is left for need not wait for the last of them, see `median_log_sd`."""


@dataclass(frozen=True)
class Strategies:
    """Creates the strategies of one study.

    Attributes:
        space: without what the prepare phase dropped.
        history: that the search adds to.
        protocol: of the search phase.
        seed: of the sampler and the simulations.
        serves_parts: whether the evaluator measures some of the models alone; a recorded table has
            no such measurements.
        prior: service times on other hardware; None without any.
        regret_percent: bound on the regret that ends the search; None leaves it to the sampler.
    """

    space: SearchSpace
    workload: Workload
    history: History
    context: StudyContext
    protocol: CapacityProtocol
    seed: int
    serves_parts: bool = True
    prior: ServicePrior | None = None
    regret_percent: float | None = None

    def uncalibrated(self, sampler: str) -> Strategy:
        """Return a strategy that learns from trials alone."""
        return self._strategy(sampler, no_forecast(self.space))

    def calibrated(
        self, sampler: str, tasks: RunningTasks, directory: StudyDirectory, watch: Watcher
    ) -> Strategy:
        """Return a strategy for the search, after the calibrate phase for samplers that use it.

        Its last runs may still be among the tasks, see `CalibratePhase.run`.

        Raises:
            StorageError: when a record cannot be written.
            WorkersLostError: when no worker is left.
        """
        if sampler not in CALIBRATED:
            return self.uncalibrated(sampler)
        phase = CalibratePhase(tasks, directory, self.context, watch)
        # The first point is the baseline, which is also the first trial.
        executed = executed_points(self.space, self.workload)
        lent = self.prior.observations if self.prior is not None else ()
        points = calibration_points(self.space, lent=lent, executed=executed)[1:]
        if self.prior is not None:
            usual = calibration_points(self.space, executed=executed)
            watch(Note(lent_text(self.prior, len(points), len(usual) - 1 - len(points))))
        cached = cached_point(self.space, self.workload, self.space.baseline)
        points += [cached] if cached is not None else []
        configs = [self.space.config(point) for point in points]
        parts = [part for config in configs[:1] for part in parts_alone(config)]
        parts = parts if self.serves_parts else []
        # A light load shows a runtime's wake-up time, which other hardware lends to scale.
        lent_runtimes = {each.layout.artifact.runtime for each in lent}
        light = [
            c for c in configs if not {m.artifact.runtime for m in executing(c)} <= lent_runtimes
        ]
        phase.run([*configs, *parts], light=[*light[:LIGHT_RUNS], *parts])
        forecaster = forecaster_of(self.space, self.workload, concurrency, self.seed)
        learnt = LearntForecast(forecaster, phase.records, self.workload, self.prior)
        left_alone = set[str]()

        def calibrated_by() -> int | None:
            if not phase.complete and learnt.median_log_sd() > _PRECISE_SD:
                return None
            for idle in learnt.open_rows(self.space).idle:
                if idle.model not in left_alone:
                    left_alone.add(idle.model)
                    watch(Note(idle.text))
            return len(phase.records)

        strategy = self._strategy(sampler, learnt, partial(learnt.open_rows, self.space))
        return replace(strategy, calibrated_by=calibrated_by)

    def _strategy(
        self,
        sampler: str,
        forecast: ForecastSource,
        opened: Callable[[], OpenRows | None] = lambda: None,
    ) -> Strategy:
        policy = AcquisitionPolicy(
            self.space, self.history, forecast, self.context, self.protocol, self.seed, opened
        )
        strategy = SAMPLERS[sampler](policy)
        if self.regret_percent is None:
            return strategy
        return replace(strategy, advise=stop_at_regret(strategy.advise, self.regret_percent))


def lent_text(prior: ServicePrior, runs: int, saved: int) -> str:
    """Return what the service times of another study save in the calibrate phase.

    Args:
        runs: calibration runs that are still made.
        saved: runs that are not.
    """
    return (
        f"the service times of study {prior.study} are taken over up to a scale: "
        f"{runs} calibration run{'s' if runs != 1 else ''} instead of {runs + saved}, which saves "
        f"about {saved * prior.run_seconds:.0f} s (by the runs of that study)"
    )

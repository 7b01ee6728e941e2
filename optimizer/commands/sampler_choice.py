"""The strategies that propose a study's configurations, by the name of their sampler."""

from __future__ import annotations

from dataclasses import dataclass, replace

from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.level_runner import concurrency
from optimizer.search.samplers import CALIBRATED, SAMPLERS, Strategy
from optimizer.search.surrogate.acquisition import AcquisitionPolicy, ForecastSource, no_forecast
from optimizer.search.surrogate.idle_models import OpenRows
from optimizer.search.surrogate.learnt_forecast import LearntForecast
from optimizer.search.worker_pool import WorkerPool
from optimizer.simulator.calibration import (
    cached_point,
    calibration_points,
    executed_points,
    parts_alone,
)
from optimizer.simulator.network_forecast import forecaster_of
from optimizer.simulator.service_prior import ServicePrior
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher
from optimizer.study.history import History
from optimizer.study.search_status import stop_at_regret
from optimizer.workload.streams import Workload


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
        self, sampler: str, pool: WorkerPool, directory: StudyDirectory, watch: Watcher
    ) -> Strategy:
        """Return a strategy for the search, after the calibrate phase for samplers that use it.

        Raises:
            StorageError: when a record cannot be written.
            WorkersLostError: when no worker is left.
        """
        if sampler not in CALIBRATED:
            return self.uncalibrated(sampler)
        phase = CalibratePhase(pool, directory, self.context, watch)
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
        calibration = phase.run(configs, parts if self.serves_parts else [])
        forecaster = forecaster_of(self.space, self.workload, concurrency, self.seed)
        learnt = LearntForecast(forecaster, calibration, self.workload, self.prior)
        opened = learnt.open_rows(self.space)
        for idle in opened.idle:
            watch(Note(idle.text))
        return self._strategy(sampler, learnt, opened)

    def _strategy(
        self, sampler: str, forecast: ForecastSource, opened: OpenRows | None = None
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

"""What proposes the configurations of a search, by name, with all that it needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from optimizer.configuration.search_space import SearchSpace
from optimizer.load.capacity import CapacityProtocol
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.evaluator import Evaluator
from optimizer.search.level_runner import concurrency
from optimizer.search.samplers import CALIBRATED, SAMPLERS, Strategy
from optimizer.search.surrogate.acquisition import AcquisitionPolicy, ForecastSource, no_forecast
from optimizer.search.surrogate.learnt_forecast import LearntForecast
from optimizer.simulator.calibration import calibration_points
from optimizer.simulator.forecast import Forecaster
from optimizer.simulator.stream_estimate import simulated_estimate
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher
from optimizer.study.history import History
from optimizer.workload.streams import Workload


@dataclass(frozen=True)
class Strategies:
    """Makes the strategies of one study.

    Attributes:
        space: less what the prepare phase dropped.
        history: the same as the search adds to.
        protocol: how long the levels of a trial take.
        seed: of all that is random in proposals.
    """

    space: SearchSpace
    workload: Workload
    history: History
    setting: StudyContext
    protocol: CapacityProtocol
    seed: int

    def uncalibrated(self, sampler: str) -> Strategy:
        """A strategy that has nothing to go by but trials."""
        return self._strategy(sampler, no_forecast(self.space))

    def calibrated(
        self, sampler: str, evaluator: Evaluator, directory: StudyDirectory, watch: Watcher
    ) -> Strategy:
        """A strategy for the search, after the calibrate phase where it has use for one.

        Raises:
            StorageError: when a record cannot be written.
        """
        if sampler not in CALIBRATED:
            return self.uncalibrated(sampler)
        phase = CalibratePhase(evaluator, directory, self.setting, watch)
        # The first is the baseline, of which its own trial tells before anything is proposed.
        points = calibration_points(self.space)[1:]
        calibration = phase.run([self.space.config(point) for point in points])
        simulate = partial(simulated_estimate, seed=self.seed)
        forecaster = Forecaster(self.space, self.workload, concurrency, simulate)
        learnt = LearntForecast(forecaster, calibration, self.workload)
        return self._strategy(sampler, learnt)

    def _strategy(self, sampler: str, forecast: ForecastSource) -> Strategy:
        guide = AcquisitionPolicy(
            self.space, self.history, forecast, self.setting, self.protocol, self.seed
        )
        return SAMPLERS[sampler](guide)

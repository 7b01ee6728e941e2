"""The calibrate phase: short saturated runs, some with a light load, that calibrate the simulator.

Together they take about as long as two trials.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import Evaluator
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.simulator.calibration import LIGHT_RUNS
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher


class CalibratePhase:
    """Measures each calibration configuration once in the life of a study."""

    def __init__(
        self,
        evaluator: Evaluator,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._evaluator = evaluator
        self._slot = context.slot
        self._runs = ResumableRuns(directory.calibration, context, watch)

    def run(
        self, configs: Sequence[ServingConfig], parts: Sequence[ServingConfig] = ()
    ) -> Sequence[TrialRecord]:
        """Measure the missing configurations; return the records of all of the study's runs.

        The first `LIGHT_RUNS` and the parts get a light load too. A configuration that fails has a
        record like the others, which the calibration ignores.

        Args:
            parts: configurations of some of the models, see `parts_alone`.

        Raises:
            StorageError: when a record cannot be written.
        """
        light = (*configs[:LIGHT_RUNS], *parts)

        def measure(config: ServingConfig) -> Evaluation:
            run = self._evaluator.calibrate if config in light else self._evaluator.saturate
            return run(config, self._slot)

        self._runs.measure_missing("calibrate", (*configs, *parts), measure)
        return self._runs.history.records

"""The calibrate phase: short saturated runs that tell how long batches take; a light load in some.

They are what the simulator predicts every other configuration from. Together they take about as
long as two trials.
"""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.search.evaluator import Evaluator
from optimizer.search.events import PhaseStarted, TrialEnded, TrialStarted, Watcher
from optimizer.search.measured_record import measured_record
from optimizer.search.setting import Setting
from optimizer.search.study_directory import StudyDirectory
from optimizer.serving_config import ServingConfig
from optimizer.simulator.calibration import LIGHT_RUNS
from optimizer.trial_record import TrialRecord


class CalibratePhase:
    """Calibrates with configurations, each once in the life of a study."""

    def __init__(
        self,
        evaluator: Evaluator,
        directory: StudyDirectory,
        setting: Setting,
        watch: Watcher,
    ) -> None:
        self._evaluator = evaluator
        self._store = directory.calibration
        self._setting = setting
        self._watch = watch

    def run(self, configs: Sequence[ServingConfig]) -> Sequence[TrialRecord]:
        """Measure what was not yet; returns the records of all of the study's runs.

        The first `LIGHT_RUNS` have a light load too.

        One that fails is a record like the others, from which nothing is learnt.

        Raises:
            StorageError: when a record cannot be written.
        """
        records = dict(self._store.read_all())
        known = {record.config for record in records.values()}
        self._watch(PhaseStarted("calibrate", len(configs)))
        for step, config in enumerate(configs, 1):
            if config in known:
                continue
            number = len(records)
            self._watch(TrialStarted(number, step, len(configs), config))
            measure = self._evaluator.calibrate if step <= LIGHT_RUNS else self._evaluator.saturate
            evaluation = measure(config, self._setting.slot)
            records[number] = measured_record(number, config, evaluation, self._setting)
            self._store.write(records[number])
            if evaluation.outcome == "failed":
                self._watch(TrialEnded(records[number], None))
        return list(records.values())

"""The calibrate phase: short saturated runs, some with a light load, that calibrate the simulator.

On one worker they take about as long as two trials together, on several as long as the longest of
them. They run beside each other as the trials do that they predict.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.search.running_tasks import LONGEST_WAIT_SECONDS, RunningTasks
from optimizer.search.worker_pool import Task, TaskKind, WorkerPool
from optimizer.simulator.calibration import LIGHT_RUNS
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import PhaseStarted, TrialFinished, TrialStarted, Watcher


class CalibratePhase:
    """Measures each calibration configuration once in the life of a study."""

    def __init__(
        self,
        pool: WorkerPool,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._tasks = RunningTasks(pool, watch)
        self._runs = ResumableRuns(directory.calibration, context, watch)
        self._watch = watch

    def run(
        self, configs: Sequence[ServingConfig], parts: Sequence[ServingConfig] = ()
    ) -> Sequence[TrialRecord]:
        """Measure the missing configurations; return the records of all of the study's runs.

        The first `LIGHT_RUNS` and the parts get a light load too. A configuration that fails has a
        record like the others, which the calibration ignores; a transient failure is retried once.

        Args:
            parts: configurations of some of the models, see `parts_alone`.

        Raises:
            StorageError: when a record cannot be written.
            WorkersLostError: when no worker is left.
        """
        everything, light = (*configs, *parts), {*configs[:LIGHT_RUNS], *parts}
        waiting = deque(enumerate(everything, 1))
        self._watch(PhaseStarted("calibrate", len(everything)))
        while waiting or len(self._tasks):
            if not waiting or not self._tasks.idle:
                self._tasks.receive(LONGEST_WAIT_SECONDS)
                continue
            step, config = waiting.popleft()
            if self._runs.history.decided(config) is None:
                kind: TaskKind = "calibrate" if config in light else "saturate"
                self._start(step, len(everything), config, kind, waiting)
        return self._runs.history.records

    def _start(
        self,
        step: int,
        of: int,
        config: ServingConfig,
        kind: TaskKind,
        waiting: deque[tuple[int, ServingConfig]],
    ) -> None:
        """Submit a run; a transient failure puts it back among those that wait."""
        number = len(self._runs.history.records) + len(self._tasks)

        def finish(evaluation: Evaluation, _: tuple[str, ...]) -> None:
            record = self._runs.record(config, evaluation)
            # A "bounded" result, of saturation and light load, is reported by its levels only.
            if record.outcome != "bounded":
                self._watch(TrialFinished(record, self._runs.best))
            if self._runs.history.decided(config) is None:
                waiting.appendleft((step, config))

        self._tasks.submit(
            Task(number, 1, config, kind),
            finish,
            lambda worker: self._watch(TrialStarted(number, step, of, config, worker=worker)),
        )

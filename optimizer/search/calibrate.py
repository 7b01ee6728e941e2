"""The calibrate phase: short saturated runs, some with a light load, that calibrate the simulator.

On one worker they take about as long as two trials together. On several they run beside each other,
as the trials do that they predict, and the search begins while the last of them are going on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.search.running_tasks import LONGEST_WAIT_SECONDS, RunningTasks
from optimizer.search.worker_pool import Task, TaskKind
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, TrialStarted, Watcher


class CalibratePhase:
    """Measures each calibration configuration once in the life of a study."""

    def __init__(
        self,
        tasks: RunningTasks,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._tasks = tasks
        self._runs = ResumableRuns(directory.calibration, context, watch)
        self._watch = watch
        self._configs: Sequence[ServingConfig] = ()

    @property
    def records(self) -> Sequence[TrialRecord]:
        """The records of all of the study's runs that have ended; later ones are added to it."""
        return self._runs.history.records

    @property
    def complete(self) -> bool:
        """Whether every configuration has its result."""
        return all(self._runs.history.decided(config) is not None for config in self._configs)

    def run(self, configs: Sequence[ServingConfig], light: Collection[ServingConfig] = ()) -> None:
        """Measure the missing configurations, until a worker is left that none of them is for.

        The runs that are going on then end while the search receives the tasks of all workers.
        A configuration that fails has a record like the others, which the calibration ignores; a
        transient failure is retried once.

        Args:
            light: those that get a light load too.

        Raises:
            StorageError: when a record cannot be written.
            WorkersLostError: when no worker is left.
        """
        self._configs = configs
        waiting = deque(enumerate(configs, 1))
        self._watch(PhaseStarted("calibrate", len(configs)))
        while waiting or (len(self._tasks) and not self._tasks.idle):
            if not self._tasks.idle:
                self._tasks.receive(LONGEST_WAIT_SECONDS)
                continue
            step, config = waiting.popleft()
            if self._runs.history.decided(config) is None:
                self._start(step, config, "calibrate" if config in light else "saturate")

    def _start(self, step: int, config: ServingConfig, kind: TaskKind) -> None:
        """Submit a run, and once more after a transient failure."""
        number = len(self._runs.history.records) + len(self._tasks)

        def finish(evaluation: Evaluation, _: tuple[str, ...]) -> None:
            record = self._runs.record(config, evaluation)
            # A "bounded" result, of saturation and light load, is reported by its levels only.
            if record.outcome != "bounded":
                text = f"calibration run of {describe(config)} {record.outcome}: {record.reason}"
                self._watch(Note(text, warning=True))
            if self._runs.history.decided(config) is None:
                self._start(step, config, kind)

        def started(worker: str) -> None:
            self._watch(TrialStarted(number, step, len(self._configs), config, worker=worker))

        self._tasks.submit(Task(number, 1, config, kind), finish, started)

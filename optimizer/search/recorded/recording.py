"""The exhaustive recording of a space: every point, and some of them repeatedly.

Every point is measured once, in a random order with a seed, so that drift of the machine does not
correlate with any parameter. Points that were disturbed by other work on the machine are measured
again. A sample is measured with the latency at fractions of its capacity, which shows the noise and
tests predictions. Then the best points are measured again in rounds, because the best of many
single measurements is optimistic.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.capacity import CapacityProtocol, RunLevel, find_capacity
from optimizer.load.curve import find_capacity_and_service, find_latencies
from optimizer.machine.utilisation import contention
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.search.recorded.table import Kind
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.study.context import StudyContext
from optimizer.study.directory import RecordingDirectory
from optimizer.study.events import PhaseStarted, TrialFinished, TrialStarted, Watcher
from optimizer.study.history import History
from optimizer.workload.streams import Workload

BEST = 10
ROUNDS = 5
SAMPLE = 16
MOST_ATTEMPTS = 3


_FIND: Mapping[Kind, Callable[..., Evaluation]] = {
    "point": find_capacity_and_service,
    "latencies": find_latencies,
    "repeat": find_capacity,
}

MeasureWith = Callable[[ServingConfig, Callable[[RunLevel], Evaluation]], Evaluation]
"""Serves a configuration and runs levels on it, see `LiveEvaluator.serve_and_measure`."""


@dataclass(frozen=True)
class RecordingTask:
    """The next measurement: a point, and what is measured of it."""

    kind: Kind
    position: Position


class RecordingPlan:
    """The order of all measurements of a recording.

    Args:
        seed: of the order of the points, and of the sample.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self._space = space
        rng = np.random.default_rng(seed)
        self._order = [space.at(int(row)) for row in rng.permutation(len(space))]
        self._sample = self._order[:: max(1, len(space) // SAMPLE)][:SAMPLE]

    @property
    def steps(self) -> int:
        """Number of measurements, without those that must be repeated."""
        return len(self._order) + len(self._sample) + ROUNDS * min(BEST, len(self._order))

    def next(
        self,
        points: Sequence[TrialRecord],
        latencies: Sequence[TrialRecord],
        repeats: Sequence[TrialRecord],
    ) -> RecordingTask | None:
        """Return the next measurement after these records, None when all are made."""
        attempts = Counter(record.config for record in points)
        latest = {record.config: record for record in points}
        for position in self._order:
            if self._space.config(position) not in latest:
                return RecordingTask("point", position)
        for position in self._order:
            config = self._space.config(position)
            if attempts[config] < MOST_ATTEMPTS and must_be_repeated(latest[config]):
                return RecordingTask("point", position)
        sampled = _measured_counts(latencies)
        for position in self._sample:
            if not sampled[self._space.config(position)]:
                return RecordingTask("latencies", position)
        done = _measured_counts(repeats)
        best = sorted(self._order, key=lambda p: -_capacity(latest[self._space.config(p)]))[:BEST]
        position = min(best, key=lambda p: done[self._space.config(p)])
        enough = done[self._space.config(position)] >= ROUNDS
        return None if enough else RecordingTask("repeat", position)


def _measured_counts(records: Sequence[TrialRecord]) -> Counter[ServingConfig]:
    """Count the measurements of each configuration; `MOST_ATTEMPTS` failures count as one."""
    made = Counter(record.config for record in records if not record.unmeasured)
    failed = Counter(record.config for record in records if record.unmeasured)
    return made + Counter({config: n // MOST_ATTEMPTS for config, n in failed.items()})


def must_be_repeated(record: TrialRecord) -> bool:
    """Return whether a measurement may succeed, or be undisturbed, at another attempt."""
    if record.failure is not None:
        return record.unmeasured
    return disturbed(record)


def disturbed(record: TrialRecord) -> bool:
    """Return whether other work took part of the machine during a level."""
    levels = record.measurement.levels if record.measurement is not None else ()
    return any(level.machine is not None and contention(level.machine) for level in levels)


def _capacity(record: TrialRecord) -> float:
    return record.measurement.load_factor if record.measurement is not None else 0.0


@dataclass(frozen=True)
class RecordPhase:
    """Measures a space by a plan; a resumed recording keeps its records."""

    space: SearchSpace
    workload: Workload
    protocol: CapacityProtocol
    measure: MeasureWith
    directory: RecordingDirectory
    context: StudyContext
    watch: Watcher

    def run(self, plan: RecordingPlan) -> None:
        """Measure until the plan is complete.

        Raises:
            StorageError: when a record cannot be written.
        """
        self.watch(PhaseStarted("record", plan.steps))
        stores = {
            "point": self.directory.trials,
            "latencies": self.directory.latencies,
            "repeat": self.directory.repeats,
        }
        runs = {kind: ResumableRuns(s, self.context, self.watch) for kind, s in stores.items()}
        points = runs["point"]
        while task := plan.next(*(own.history.records for own in runs.values())):
            task_runs = runs[task.kind]
            done = sum(len(own.history.records) for own in runs.values())
            config = self.space.config(task.position)
            number = len(task_runs.history.records)
            self.watch(TrialStarted(number, done + 1, plan.steps, config))
            evaluation = self.measure(config, self._levels(task, config, points.history))
            self.watch(TrialFinished(task_runs.record(config, evaluation), points.best))

    def _levels(
        self, task: RecordingTask, config: ServingConfig, history: History
    ) -> Callable[[RunLevel], Evaluation]:
        share = history.expected_share(config)
        find = _FIND[task.kind]
        return partial(
            find,
            workload=self.workload,
            protocol=self.protocol,
            concurrency=concurrency(config),
            expected_share=share,
        )

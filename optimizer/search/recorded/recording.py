"""Recording a space exhaustively: every point, and again those whose truth must be known well.

Every point is measured once, in a seeded order, so that the machine's pace does not follow any
parameter. Points during which something else ran on the machine are measured again. A sample
is measured again with the latency at parts of its capacity: it shows the noise, and what a
prediction must hold up against. Then the best are measured again and again, in rounds, since the
best of many single measurements is lucky.
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
"""Serves a configuration and has levels run on it, see `LiveEvaluator.serve_and_measure`."""


@dataclass(frozen=True)
class Task:
    """A point that is to be measured next, and as what."""

    kind: Kind
    position: Position


class RecordingPlan:
    """What is still to be measured, by what was.

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
        """Measurements in all, those that must be made again left out."""
        return len(self._order) + len(self._sample) + ROUNDS * min(BEST, len(self._order))

    def next(
        self,
        points: Sequence[TrialRecord],
        latencies: Sequence[TrialRecord],
        repeats: Sequence[TrialRecord],
    ) -> Task | None:
        """The next measurement after these, None when all are made."""
        attempts = Counter(record.config for record in points)
        latest = {record.config: record for record in points}
        for position in self._order:
            if self._space.config(position) not in latest:
                return Task("point", position)
        for position in self._order:
            config = self._space.config(position)
            if attempts[config] < MOST_ATTEMPTS and must_be_repeated(latest[config]):
                return Task("point", position)
        sampled = _made(latencies)
        for position in self._sample:
            if not sampled[self._space.config(position)]:
                return Task("latencies", position)
        done = _made(repeats)
        best = sorted(self._order, key=lambda p: -_capacity(latest[self._space.config(p)]))[:BEST]
        position = min(best, key=lambda p: done[self._space.config(p)])
        enough = done[self._space.config(position)] >= ROUNDS
        return None if enough else Task("repeat", position)


def _made(records: Sequence[TrialRecord]) -> Counter[ServingConfig]:
    """Count the measurements of each configuration; so many that could not be made count as one."""
    made = Counter(record.config for record in records if not record.unmeasured)
    failed = Counter(record.config for record in records if record.unmeasured)
    return made + Counter({config: n // MOST_ATTEMPTS for config, n in failed.items()})


def must_be_repeated(record: TrialRecord) -> bool:
    """Whether a measurement may pass for another reason than the configuration itself."""
    if record.failure is not None:
        return record.unmeasured
    return disturbed(record)


def disturbed(record: TrialRecord) -> bool:
    """Whether anything else took part of the machine while a level was measured."""
    levels = record.measurement.levels if record.measurement is not None else ()
    return any(level.machine is not None and contention(level.machine) for level in levels)


def _capacity(record: TrialRecord) -> float:
    return record.measurement.load_factor if record.measurement is not None else 0.0


class RecordPhase:
    """Measures a space by a plan; what is recorded already stays."""

    def __init__(
        self,
        space: SearchSpace,
        workload: Workload,
        protocol: CapacityProtocol,
        measure: MeasureWith,
        directory: RecordingDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._space = space
        self._workload = workload
        self._protocol = protocol
        self._measure = measure
        self._directory = directory
        self._context = context
        self._watch = watch

    def run(self, plan: RecordingPlan) -> None:
        """Measure until nothing is left.

        Raises:
            StorageError: when a record cannot be written.
        """
        self._watch(PhaseStarted("record", plan.steps))
        stores = {
            "point": self._directory.trials,
            "latencies": self._directory.latencies,
            "repeat": self._directory.repeats,
        }
        kept = {kind: ResumableRuns(s, self._context, self._watch) for kind, s in stores.items()}
        points = kept["point"]
        while task := plan.next(*(runs.history.records for runs in kept.values())):
            own = kept[task.kind]
            done = sum(len(runs.history.records) for runs in kept.values())
            config = self._space.config(task.position)
            number = len(own.history.records)
            self._watch(TrialStarted(number, done + 1, plan.steps, config))
            evaluation = self._measure(config, self._levels(task, config, points.history))
            self._watch(TrialFinished(own.keep(config, evaluation), points.best))

    def _levels(
        self, task: Task, config: ServingConfig, history: History
    ) -> Callable[[RunLevel], Evaluation]:
        """How the levels of a task are run."""
        share = history.expected_share(config)
        find = _FIND[task.kind]
        return partial(
            find,
            workload=self._workload,
            protocol=self._protocol,
            concurrency=concurrency(config),
            expected_share=share,
        )

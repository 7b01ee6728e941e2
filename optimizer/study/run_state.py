"""The state of a run, by its events: what the live view and `status` show.

Times are seconds of the given clock.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from optimizer.configuration.serving_config import describe
from optimizer.measurement.trial_record import Outcome, TrialRecord
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.event_text import (
    expectation_text,
    level_started_text,
    level_text,
)
from optimizer.study.events import (
    ArtifactReady,
    DisturbanceCheckStarted,
    DriftRunStarted,
    EarlierTrials,
    Event,
    LevelFinished,
    LevelStarted,
    PhaseStarted,
    SearchStatusChanged,
    StepFinished,
    StepStarted,
    TrialFinished,
    TrialStarted,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)
from optimizer.study.history import in_order_of_tells, outcome_counts
from optimizer.study.progress import TimeLeft

_LATEST = 40
"""Number of trials whose capacities are kept."""

_RECENT = 10
"""Number of latest trials whose durations predict the next one's."""


@dataclass
class CurrentMeasurement:
    """A configuration that is being measured, or another step of a phase.

    Attributes:
        configuration: empty for a step without one.
        number: of the trial; None for a measurement that is no trial.
        started: None for a measurement that is no trial.
        levels: measured so far, one line each; `rates` and `p95s_ms` are their figures.
        warnings: of the last level that had any.
    """

    configuration: str = ""
    number: int | None = None
    started: float | None = None
    expected: str = ""
    doing: str = ""
    levels: list[str] = field(default_factory=list)
    warnings: tuple[str, ...] = ()
    rates: list[float] = field(default_factory=list)
    p95s_ms: list[float] = field(default_factory=list)

    def watch(self, event: Event) -> None:
        """Update by an event of what measures it."""
        match event:
            case StepStarted(step):
                self.doing = step
            case LevelStarted(offered, seconds):
                self.doing = level_started_text(offered, seconds)
            case LevelFinished(level):
                self.levels.append(level_text(level))
                self.warnings = level.warnings or self.warnings
                self.rates.append(level.achieved_per_second)
                self.p95s_ms.append(level.latency_ms(95))
            case _:
                pass


@dataclass
class RunningWorker:
    """One of several workers.

    Attributes:
        location: its slot or node.
        measurement: None while it is idle.
        losses: how often it was lost.
    """

    location: str
    measurement: CurrentMeasurement | None = None
    losses: int = 0


class RunState:
    """The state of a run.

    Args:
        clock: returns seconds.
        earlier: trials of the study that earlier runs measured.
        best: recommendation by the records of earlier runs.
        confirmations: number of records of the study's confirm phases so far.

    Attributes:
        now: what is measured, or was begun last where there are several workers.
        workers: by name; none where trials run one at a time.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        earlier: Mapping[int, TrialRecord] | None = None,
        best: ConfirmedCapacity | None = None,
        confirmations: int = 0,
    ) -> None:
        self._clock = clock
        self.started = clock()
        self.phase, self.steps, self.done = "start", 1, 0
        self.phase_started = self.started
        self.phase_seconds: float | None = None
        self.now = CurrentMeasurement(doing="checking what is needed")
        self.workers: dict[str, RunningWorker] = {}
        self.regret_bound: float | None = None
        self.confirmations = confirmations
        self._begin_with(in_order_of_tells((earlier or {}).values()), best)

    def watch(self, event: Event) -> None:
        """Update the state by an event."""
        match event:
            case EarlierTrials(records, best):
                self._begin_with(records, best)
            case PhaseStarted(phase, steps, seconds):
                self._begin_phase(phase, steps, seconds)
            case ArtifactReady() | StepFinished():
                self.done += 1
            case TrialStarted():
                self._begin_trial(event)
            case DriftRunStarted(config):
                self._begin(f"baseline rerun: {describe(config)}")
            case DisturbanceCheckStarted(config, count):
                self._begin(f"baseline alone, then on {count} workers at once: {describe(config)}")
                self.now.doing = "starting the servers"
            case SearchStatusChanged(status):
                self.regret_bound = status.regret_bound
            case TrialFinished(record, best):
                self._end_trial(record, best)
            case WorkersStarted() | WorkerEvent() | WorkerLost():
                self._watch_workers(event)
            case _:
                self.now.watch(event)

    def _watch_workers(self, event: WorkersStarted | WorkerEvent | WorkerLost) -> None:
        match event:
            case WorkersStarted(locations):
                for name, location in locations.items():
                    self._worker(name).location = location
            case WorkerEvent(name, number, own):
                self._of_worker(name, number).watch(own)
            case WorkerLost(name):
                worker = self._worker(name)
                worker.losses += 1
                worker.measurement = None

    def time_left(self) -> TimeLeft:
        """Return the remaining time of the phase, unless it ends early."""
        left, spent = self.steps - min(self.done, self.steps), self._clock() - self.phase_started
        by_clock = None if self.phase_seconds is None else max(0.0, self.phase_seconds - spent)
        each: float | None = None
        if self.phase == "search" and self._trial_seconds:
            each = statistics.median(self._trial_seconds) / max(1, self._running_steps)
        elif self.done:
            each = spent / self.done
        return TimeLeft(None if each is None else each * left, by_clock)

    @property
    def _running_steps(self) -> int:
        """Number of workers with a step of the phase: in the search, those with a trial."""
        running = [w.measurement for w in self.workers.values() if w.measurement is not None]
        return sum((each.number is not None) == (self.phase == "search") for each in running)

    def _begin_with(self, records: Sequence[TrialRecord], best: ConfirmedCapacity | None) -> None:
        self.best = best
        self.trials: dict[Outcome, int] = outcome_counts(records)
        self.capacities = deque((_capacity(r) for r in records), maxlen=_LATEST)
        own = (r.seconds.total for r in records if r.origin is None)
        self._trial_seconds = deque((s for s in own if s > 0), maxlen=_RECENT)

    def _begin_phase(self, phase: str, steps: int, seconds: float | None) -> None:
        self.phase, self.steps, self.done = phase, max(1, steps), 0
        self.phase_started, self.phase_seconds = self._clock(), seconds
        self.now = CurrentMeasurement(doing=self.now.doing)
        if phase != "search":  # The last calibration runs go on beside its first trials.
            for worker in self.workers.values():
                worker.measurement = None
        if phase not in ("calibrate", "search"):
            # What follows the search is measured alone.
            self.workers = {}

    def _begin_trial(self, event: TrialStarted) -> None:
        # The steps of the confirm phase are rounds, of which each finalist has its own.
        if self.phase != "confirm":
            self.done = event.measured - 1 - self._running_steps
        self._begin(describe(event.config))
        self.now.number = event.number if self.phase == "search" else None
        self.now.started = self._clock()
        if event.expected is not None:
            self.now.expected = expectation_text(event.expected)
        if event.worker:
            self._worker(event.worker).measurement = self.now

    def _begin(self, configuration: str) -> None:
        self.now = CurrentMeasurement(configuration, doing=self.now.doing)

    def _worker(self, name: str) -> RunningWorker:
        return self.workers.setdefault(name, RunningWorker(""))

    def _of_worker(self, name: str, number: int) -> CurrentMeasurement:
        """Return what a worker measures: its trial, a calibration run, or one of the baseline."""
        measurement = self._worker(name).measurement
        if measurement is None or measurement.number not in (None, number):
            measurement = self.now
        return measurement

    def _end_trial(self, record: TrialRecord, best: ConfirmedCapacity | None) -> None:
        self.done += 1
        for worker in self.workers.values():
            if worker.measurement is not None and worker.measurement.number == record.number:
                worker.measurement = None
        # A failed calibration run has no recommendation, and does not withdraw the earlier one.
        if best is not None or self.phase in ("search", "confirm"):
            self.best = best
        if self.phase == "confirm":
            self.confirmations += 1
        if self.phase == "search":
            self.trials[record.outcome] += 1
            self.capacities.append(_capacity(record))
            self._trial_seconds.append(record.seconds.total)


def _capacity(record: TrialRecord) -> float:
    """Return the requests/s within the limits; 0 where no load met them."""
    if record.outcome != "ok" or record.measurement is None:
        return 0.0
    return record.measurement.capacity_per_second

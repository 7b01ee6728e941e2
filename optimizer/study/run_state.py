"""The state of a run, by its events: what the live view and `status` show.

Times are seconds of the given clock.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass

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
    DriftRunStarted,
    Event,
    LevelFinished,
    LevelStarted,
    PhaseStarted,
    SearchStatusChanged,
    StepFinished,
    StepStarted,
    TrialFinished,
    TrialStarted,
)
from optimizer.study.history import History

_LATEST = 40
"""Number of trials whose capacities are kept."""

_RECENT = 10
"""Number of latest trials whose durations predict the next one's."""


@dataclass(frozen=True)
class TimeLeft:
    """Remaining seconds of the phase; None where they are unknown.

    Attributes:
        by_steps: if every remaining step takes as long as those before.
        by_clock: until the phase's time limit.
    """

    by_steps: float | None
    by_clock: float | None

    @property
    def at_most(self) -> float | None:
        """The smaller of the two."""
        remaining = [left for left in (self.by_steps, self.by_clock) if left is not None]
        return min(remaining, default=None)


class RunState:
    """The state of a run.

    Args:
        clock: returns seconds.
        earlier: trials of the study that earlier runs measured.
        best: recommendation by the records of earlier runs.
    """

    def __init__(
        self,
        clock: Callable[[], float],
        earlier: Mapping[int, TrialRecord] | None = None,
        best: ConfirmedCapacity | None = None,
    ) -> None:
        self._clock = clock
        self.started = clock()
        self.phase, self.steps, self.done = "start", 1, 0
        self.phase_started = self.started
        self.phase_seconds: float | None = None
        self.doing = "checking what is needed"
        self.trial_number: int | None = None
        self.trial_started: float | None = None
        self.configuration = ""
        self.expected = ""
        self.levels: list[str] = []
        self.warnings: tuple[str, ...] = ()
        self.rates: list[float] = []
        self.p95s_ms: list[float] = []
        self.regret_bound: float | None = None
        history = History(earlier or {})
        self.best = best
        self.trials: dict[Outcome, int] = history.counts()
        self.capacities = deque((_capacity(r) for r in history.records), maxlen=_LATEST)
        own = (r.seconds.total for r in history.records if r.origin is None)
        self._trial_seconds = deque((s for s in own if s > 0), maxlen=_RECENT)

    def watch(self, event: Event) -> None:
        """Update the state by an event."""
        match event:
            case PhaseStarted(phase, steps, seconds):
                self._begin_phase(phase, steps, seconds)
            case StepStarted(step):
                self.doing = step
            case ArtifactReady() | StepFinished():
                self.done += 1
            case TrialStarted():
                self._begin_trial(event)
            case DriftRunStarted(config):
                self._begin(f"baseline rerun: {describe(config)}")
            case LevelStarted(offered, seconds):
                self.doing = level_started_text(offered, seconds)
            case LevelFinished(level):
                self.levels.append(level_text(level))
                self.warnings = level.warnings or self.warnings
                self.rates.append(level.achieved_per_second)
                self.p95s_ms.append(level.latency_ms(95))
            case SearchStatusChanged(status):
                self.regret_bound = status.regret_bound
            case TrialFinished(record, best):
                self._end_trial(record, best)
            case _:
                pass

    def time_left(self) -> TimeLeft:
        """Return the remaining time of the phase, unless it ends early."""
        left, spent = self.steps - min(self.done, self.steps), self._clock() - self.phase_started
        by_clock = None if self.phase_seconds is None else max(0.0, self.phase_seconds - spent)
        each: float | None = None
        if self.phase == "search" and self._trial_seconds:
            each = statistics.median(self._trial_seconds)
        elif self.done:
            each = spent / self.done
        return TimeLeft(None if each is None else each * left, by_clock)

    def _begin_phase(self, phase: str, steps: int, seconds: float | None) -> None:
        self.phase, self.steps, self.done = phase, max(1, steps), 0
        self.phase_started, self.phase_seconds = self._clock(), seconds
        self._begin("")
        self.trial_number = self.trial_started = None

    def _begin_trial(self, event: TrialStarted) -> None:
        # The steps of the confirm phase are rounds, of which each finalist has its own.
        self.done = self.done if self.phase == "confirm" else event.measured - 1
        self._begin(describe(event.config))
        self.trial_number = event.number if self.phase == "search" else None
        self.trial_started = self._clock()
        if event.expected is not None:
            self.expected = expectation_text(event.expected)

    def _begin(self, configuration: str) -> None:
        self.configuration, self.expected = configuration, ""
        self.levels, self.rates, self.p95s_ms = [], [], []
        self.warnings = ()

    def _end_trial(self, record: TrialRecord, best: ConfirmedCapacity | None) -> None:
        self.done += 1
        # A failed calibration run has no recommendation, and does not withdraw the earlier one.
        if best is not None or self.phase in ("search", "confirm"):
            self.best = best
        if self.phase == "search":
            self.trials[record.outcome] += 1
            self.capacities.append(_capacity(record))
            self._trial_seconds.append(record.seconds.total)


def _capacity(record: TrialRecord) -> float:
    """Return the requests/s within the limits; 0 where no load met them."""
    if record.outcome != "ok" or record.measurement is None:
        return 0.0
    return record.measurement.capacity_per_second

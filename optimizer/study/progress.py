"""progress.json: the state of a run, for viewers in other processes. `progress_file` writes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from optimizer.errors import DamagedStudyError
from optimizer.files.untrusted import check_ranges
from optimizer.measurement.trial_record import Outcome
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory


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


@dataclass(frozen=True)
class CurrentTrial:
    """The configuration that is being measured.

    Attributes:
        number: of the trial; None for a measurement that is no trial.
        since: Unix time in seconds.
        rates, p95s_ms: of the levels so far.
        warnings: of the last level that had any.
        doing: the step that it is at.
    """

    configuration: str
    number: int | None
    since: float | None
    expected: str
    levels: tuple[str, ...]
    warnings: tuple[str, ...]
    rates: tuple[float, ...]
    p95s_ms: tuple[float, ...]
    doing: str = ""


@dataclass(frozen=True)
class WorkerProgress:
    """One of several workers.

    Attributes:
        location: its slot or node.
        now: None while it is idle.
        losses: how often it was lost, and started again.
    """

    name: str
    location: str
    now: CurrentTrial | None
    losses: int


@dataclass(frozen=True)
class BestSoFar:
    """The recommendation by the records so far.

    Attributes:
        number: of its trial.
        found: its figures in one line.
    """

    number: int
    configuration: str
    found: str
    capacity_per_second: float
    usd_per_million_at_capacity: float
    confirmed: bool = False


@dataclass(frozen=True)
class Progress:
    """The state of a run; times are Unix seconds.

    Attributes:
        trials: of the study, by outcome.
        seconds_left_by_steps, seconds_left_by_clock: see `TimeLeft`.
        gap: the status's regret bound, see `SearchStatus`.
        capacities: of the latest trials, 0 where no load met the limits.
        events: the latest, as lines.
        ended: how; None while the run goes on, and where it was killed.
        workers: none where one trial runs at a time.
        confirmations: number of records of confirm phases; None in files of earlier versions.
    """

    started: float
    updated: float
    phase: str
    steps: int
    done: int
    phase_started: float
    doing: str
    now: CurrentTrial | None
    trials: Mapping[Outcome, int]
    best: BestSoFar | None
    capacities: tuple[float, ...]
    seconds_left_by_steps: float | None
    seconds_left_by_clock: float | None
    gap: float | None
    events: tuple[str, ...]
    ended: str | None = None
    workers: tuple[WorkerProgress, ...] = ()
    confirmations: int | None = None
    schema_version: Literal[1] = 1

    def is_current(self, directory: StudyDirectory) -> bool:
        """Return whether no record was written after it, but for the last second of a run."""
        if directory.running:
            return self.ended is None
        written = sum(self.trials.values()), self.confirmations
        return written == (len(directory.trials), len(directory.confirmations))


def regret_text(regret_bound: float) -> str:
    """Return how much cheaper another configuration may be than what was found."""
    return f"up to {regret_bound:.0%} cheaper (95% bound)"


@cache
def _json() -> TypeAdapter[Progress]:
    return TypeAdapter(Progress)


def progress_from_json(data: Any) -> Progress:
    """Return the progress in JSON data. Raises ValueError with the first mistake."""
    try:
        progress = _json().validate_python(data)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error
    check_ranges(progress)
    return progress


def read_progress(directory: StudyDirectory) -> Progress | None:
    """Return what the latest run has written; None of runs that wrote none.

    Raises:
        DamagedStudyError: when the file is damaged.
    """
    if not directory.progress.exists():
        return None
    try:
        return progress_from_json(directory.read_json(directory.progress))
    except ValueError as error:
        raise DamagedStudyError(directory.progress, error) from error

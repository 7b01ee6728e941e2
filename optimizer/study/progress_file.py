"""progress.json: the state of a run, for viewers in other processes.

The run writes it at most once a second, when something has changed. It is written atomically, and
no search depends on it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from optimizer.configuration.serving_config import describe
from optimizer.errors import StorageError
from optimizer.files.atomic import write_json
from optimizer.files.untrusted import check_ranges
from optimizer.measurement.trial_record import Outcome
from optimizer.space_file.section import first_mistake
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.directory import StudyDirectory
from optimizer.study.event_text import event_lines
from optimizer.study.events import Event, Watcher
from optimizer.study.run_log import end_text
from optimizer.study.run_state import CurrentMeasurement, RunState

_EVENTS = 12
_SECONDS_BETWEEN = 1.0


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


_JSON = TypeAdapter(Progress)


def progress_from_json(data: Any) -> Progress:
    """Return the progress in JSON data. Raises ValueError with the first mistake."""
    try:
        progress = _JSON.validate_python(data)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error
    check_ranges(progress)
    return progress


class ProgressFile:
    """Keeps the file up to date with the events, in a thread of its own."""

    def __init__(self, path: Path, state: RunState, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._state = state
        self._events = deque[str](maxlen=_EVENTS)
        self._lock = threading.Lock()
        self._changed, self._over = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._keep, name="progress", daemon=True)

    def start(self) -> None:
        """Start writing."""
        self._changed.set()
        self._thread.start()

    def watch(self, event: Event) -> None:
        """Update the state by an event."""
        with self._lock:
            self._state.watch(event)
            self._events += event_lines(event)
        self._changed.set()

    def end(self, how: str) -> None:
        """Write how the run ended, and nothing after that."""
        self._over.set()
        self._changed.set()
        self._thread.join()
        self._write(how)

    def _keep(self) -> None:
        while not self._over.is_set():
            self._changed.wait()
            self._changed.clear()
            if not self._over.is_set():
                self._write(None)
            self._over.wait(_SECONDS_BETWEEN)

    def _write(self, ended: str | None) -> None:
        with self._lock:
            progress = _progress(self._state, tuple(self._events), self._clock(), ended)
        # Where nothing can be written the run itself ends, and says so.
        with suppress(StorageError):
            write_json(self._path, asdict(progress))


def _progress(state: RunState, events: tuple[str, ...], now: float, ended: str | None) -> Progress:
    left = state.time_left()
    return Progress(
        started=state.started,
        updated=now,
        phase=state.phase,
        steps=state.steps,
        done=min(state.done, state.steps),
        phase_started=state.phase_started,
        doing=state.now.doing,
        now=_current(state.now),
        workers=tuple(
            WorkerProgress(name, own.location, _current(own.measurement), own.losses)
            for name, own in state.workers.items()
        ),
        trials={**state.trials},
        confirmations=state.confirmations,
        best=best_so_far(state.best),
        capacities=tuple(state.capacities),
        seconds_left_by_steps=left.by_steps,
        seconds_left_by_clock=left.by_clock,
        gap=state.regret_bound,
        events=events,
        ended=ended,
    )


def _current(measurement: CurrentMeasurement | None) -> CurrentTrial | None:
    if measurement is None or not measurement.configuration:
        return None
    return CurrentTrial(
        configuration=measurement.configuration,
        number=measurement.number,
        since=measurement.started,
        expected=measurement.expected,
        levels=tuple(measurement.levels),
        warnings=measurement.warnings,
        rates=tuple(measurement.rates),
        p95s_ms=tuple(measurement.p95s_ms),
        doing=measurement.doing,
    )


def best_so_far(best: ConfirmedCapacity | None) -> BestSoFar | None:
    """Return the figures of the recommendation."""
    if best is None:
        return None
    candidate = best.candidate
    return BestSoFar(
        number=best.trial.number,
        configuration=describe(best.config),
        found=best.figures,
        capacity_per_second=candidate.measurement.capacity_per_second,
        usd_per_million_at_capacity=candidate.score.usd_per_million_at_capacity,
        confirmed=best.confirmed,
    )


@contextmanager
def progress_file(
    directory: StudyDirectory, state: RunState, clock: Callable[[], float]
) -> Iterator[Watcher]:
    """Keep progress.json up to date for the duration of a run, then write how it ended.

    Args:
        state: of the run, with the results of the study's earlier runs.
        clock: returns Unix seconds.
    """
    file = ProgressFile(directory.progress, state, clock)
    file.start()
    try:
        yield file.watch
    except BaseException as error:
        file.end(end_text(error))
        raise
    file.end("done")

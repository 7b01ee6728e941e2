"""Keeps progress.json up to date with a run.

The run writes it at most once a second, when something has changed. It is written atomically, and
no search depends on it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

from optimizer.configuration.serving_config import describe
from optimizer.errors import StorageError
from optimizer.files.atomic import write_json
from optimizer.study.decision import ConfirmedCapacity
from optimizer.study.directory import StudyDirectory
from optimizer.study.event_text import event_lines
from optimizer.study.events import Event, Watcher
from optimizer.study.progress import BestSoFar, CurrentTrial, Progress, WorkerProgress
from optimizer.study.run_log import end_text
from optimizer.study.run_state import CurrentMeasurement, RunState

_EVENTS = 12
_SECONDS_BETWEEN = 1.0


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

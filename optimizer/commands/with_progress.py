"""What every run leaves for those who look on: its log, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from optimizer.study.decision import stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher, to_all
from optimizer.study.progress_file import progress_file
from optimizer.study.run_log import run_log
from optimizer.study.run_state import RunState


@contextmanager
def logged(directory: StudyDirectory, watch: Watcher) -> Iterator[Watcher]:
    """A watcher that tells `watch`, and keeps every event in the log of `directory`."""
    with run_log(directory.run_log, lambda: datetime.now(UTC).astimezone()) as log:
        yield to_all(log, watch)


@contextmanager
def with_progress(directory: StudyDirectory, watch: Watcher) -> Iterator[Watcher]:
    """The same, and keeps in progress.json where the run stands; the caller holds the lock.

    Raises:
        StorageError: when a record is damaged.
    """
    known = directory.trials.read_all()
    state = RunState(time.time, known, stored_decision(directory).best)
    with (
        logged(directory, watch) as log,
        progress_file(directory, state, time.time) as progress,
    ):
        yield to_all(progress, log)

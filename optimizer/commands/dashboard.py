"""Open the dashboard of a study."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from optimizer.analysis.study_results import study_results
from optimizer.errors import UsageError
from optimizer.study.dashboard.markdown import study_note, trial_note
from optimizer.study.dashboard.server import Notes, dashboard_server, require_dashboard
from optimizer.study.directory import StudyDirectory
from optimizer.study.progress import read_progress
from optimizer.study.searched_space import read_searched


@dataclass(frozen=True)
class DashboardOptions:
    """Options of `dashboard`.

    Attributes:
        port: on 127.0.0.1; 0 takes any that is free.
        storage: URL of the study's database; None for its journal file.
    """

    study: str
    port: int = 8080
    storage: str | None = field(default=None, repr=False)  # may have a password
    results: Path = Path("results")


@contextmanager
def open_dashboard(options: DashboardOptions) -> Iterator[WSGIServer]:
    """Open the server of the dashboard; the caller has it serve."""
    directory = StudyDirectory(options.results.absolute() / options.study)
    if not directory.space.exists():
        raise UsageError(f"study {options.study!r} not found in {options.results}")
    if options.storage is None and not directory.journal.exists():
        raise UsageError(
            f"study {directory.name} has no journal file: give the --storage that it is run with"
        )
    require_dashboard()
    with dashboard_server(
        directory.name,
        directory.journal,
        options.storage,
        directory.artifacts,
        options.port,
        Notes(lambda: note_of_study(directory), lambda number: _trial_note(directory, number)),
    ) as server:
        yield server


def note_of_study(directory: StudyDirectory) -> str:
    """Return the note of a study: how far it is, and the best of its configurations."""
    progress = read_progress(directory)
    results = study_results(directory, progress)
    ended = results.end_reason(directory)
    phase = f"ended: {ended}" if ended is not None else "interrupted"
    running = progress if directory.running else None
    if running is not None:
        phase = f"phase {running.phase}"
    baseline = None
    if directory.searched.exists():
        space = read_searched(directory).search_space
        baseline = results.decision.entry_of(space.config(space.baseline))
    return study_note(
        directory.name,
        phase,
        results.trials,
        results.decision.best,
        baseline,
        running.gap if running is not None else None,
    )


def _trial_note(directory: StudyDirectory, number: int) -> str | None:
    record = directory.trials.read(number)
    return trial_note(record) if record is not None else None

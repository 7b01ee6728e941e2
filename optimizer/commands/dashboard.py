"""Open the dashboard of a study, with the notes that it lacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from wsgiref.simple_server import WSGIServer

from optimizer.analysis.study_reading import read_study
from optimizer.errors import StudyBusyError, UsageError
from optimizer.study.dashboard.dashboard_study import DashboardStudy
from optimizer.study.dashboard.server import dashboard_server, require_dashboard
from optimizer.study.dashboard.writer import StudyNotes
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher


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
def open_dashboard(options: DashboardOptions, watch: Watcher) -> Iterator[WSGIServer]:
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
        directory.name, directory.journal, options.storage, directory.artifacts, options.port
    ) as server:
        _write_missing_notes(directory, options.storage, watch)
        yield server


def _write_missing_notes(directory: StudyDirectory, storage: str | None, watch: Watcher) -> None:
    """Write the notes of records that have none; a study that is running writes its own."""
    if not directory.searched.exists():
        return
    with (
        DashboardStudy(directory.name, directory.journal, storage, directory.artifacts) as shown,
        suppress(StudyBusyError),
        directory.locked(),
    ):
        study = read_study(directory.root.parent, directory.name)
        notes = StudyNotes(shown, directory, study.searched, (), watch)
        notes.catch_up()
        summary = study.summary
        notes.end(f"ended: {summary.ended}" if summary is not None else "interrupted")

"""Where studies stand, read from what their runs have written. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.errors import DamagedStudyError, UsageError
from optimizer.search.history import History
from optimizer.search.progress import BestSoFar, Progress, best_so_far, progress_from_json
from optimizer.search.study_directory import StudyDirectory
from optimizer.search.study_files import read_summary
from optimizer.trial_record import Outcome

State = Literal["running", "done", "ended", "cut off", "not running"]
"""ended: by an error or a signal. cut off: the process was killed. not running: it left no word."""

_FOLDERS = ("recorded", "baselines", "ramp", "advanced")
"""Runs beside a study's own, each in a folder below it."""


@dataclass(frozen=True)
class StudyStatus:
    """Where one study stands.

    Attributes:
        name: as `study_status` takes it.
        progress: what its latest run has written; None of runs that wrote none.
        trials: by outcome.
        best: of the trials.
        confirmed: the winner as the summary has it, None where none was confirmed.
        search_ended: why the search has ended, where it has.
    """

    name: str
    state: State
    progress: Progress | None
    trials: Mapping[Outcome, int]
    best: BestSoFar | None
    confirmed: Mapping[str, Any] | None
    search_ended: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


def study_status(results: Path, study: str) -> StudyStatus:
    """Where a study stands.

    Args:
        results: folder of the studies.
        study: a name in it, or of a run beside a study's own, such as quickstart/recorded.

    Raises:
        UsageError: where there is no such study.
        StorageError: when its files are damaged.
    """
    directory = StudyDirectory(results.absolute() / study)
    if not _is_study(directory):
        raise UsageError(f"there is no study {study} in {results}")
    progress = _progress(directory)
    if progress is not None:
        trials, best = progress.trials, progress.best
    else:
        history = History(directory.trials.read_all())
        trials, best = history.counts(), best_so_far(history.incumbent)
    summary = read_summary(directory) if directory.summary.exists() else {}
    return StudyStatus(
        name=study,
        state=_state(directory, progress),
        progress=progress,
        trials=trials,
        best=best,
        confirmed=summary.get("best"),
        search_ended=summary.get("ended"),
    )


def all_statuses(results: Path) -> list[StudyStatus]:
    """All studies of a folder by name, and the runs beside them. Raises StorageError."""
    found = [
        StudyDirectory(root)
        for study in sorted(results.absolute().glob("*"))
        for root in (study, *(study / folder for folder in _FOLDERS))
    ]
    names = [each.root.relative_to(results.absolute()) for each in found if _is_study(each)]
    return [study_status(results, name.as_posix()) for name in names]


def _is_study(directory: StudyDirectory) -> bool:
    return directory.space.exists() or directory.progress.exists()


def _progress(directory: StudyDirectory) -> Progress | None:
    if not directory.progress.exists():
        return None
    try:
        return progress_from_json(directory.read_json(directory.progress))
    except ValueError as error:
        raise DamagedStudyError(directory.progress, error) from error


def _state(directory: StudyDirectory, progress: Progress | None) -> State:
    if directory.held:
        return "running"
    if progress is None:
        return "not running"
    if progress.ended is None:
        return "cut off"
    return "done" if progress.ended == "done" else "ended"

"""Where studies stand, read from what their runs have written. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.analysis.summary import SummaryEntry, current_summary
from optimizer.errors import UsageError
from optimizer.measurement.disturbance import DisturbanceCheck
from optimizer.measurement.trial_record import Outcome
from optimizer.study.directory import StudyDirectory
from optimizer.study.progress import BestSoFar, Progress, read_progress

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
        best: what the records recommend, confirmed or not.
        confirmed: the same as the summary has it, None where it is unconfirmed.
        search_ended: why the search has ended, where it has.
        disturbance: latest check, None where trials did not run at the same time.
        run_by: the process that runs it, in words.
    """

    name: str
    state: State
    progress: Progress | None
    trials: Mapping[Outcome, int]
    best: BestSoFar | None
    confirmed: SummaryEntry | None
    search_ended: str | None
    disturbance: DisturbanceCheck | None = None
    run_by: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _Results:
    """What the records of a study come to: the best, and the same as its summary has it."""

    trials: Mapping[Outcome, int]
    best: BestSoFar | None
    confirmed: SummaryEntry | None = None
    search_ended: str | None = None


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
        raise UsageError(f"study {study!r} not found in {results}")
    progress = read_progress(directory)
    holder = directory.holder
    state: State = _state_at_rest(progress) if holder is None else "running"
    own = _written_results(directory, progress) or _recorded_results(directory, progress)
    return StudyStatus(
        name=study,
        state=state,
        progress=progress,
        trials=own.trials,
        best=own.best,
        confirmed=own.confirmed,
        search_ended=own.search_ended,
        disturbance=next(reversed(directory.disturbance.read()), None),
        run_by=holder.text if holder is not None else None,
    )


def _written_results(directory: StudyDirectory, progress: Progress | None) -> _Results | None:
    """Return the results that the run has written; None where only the records have them."""
    if progress is None or not directory.searched.exists() or not progress.is_current(directory):
        return None
    trials, best = progress.trials, progress.best
    summary = current_summary(directory, sum(trials.values()), best)
    if summary is not None:
        return _Results(trials, best, summary.best, summary.ended)
    return _Results(trials, best) if best is None or not best.confirmed else None


def _recorded_results(directory: StudyDirectory, progress: Progress | None) -> _Results:
    # What reads records takes a while to import.
    from optimizer.analysis.run_summary import entry
    from optimizer.analysis.study_results import study_results
    from optimizer.study.progress_file import best_so_far

    results = study_results(directory, progress)
    best = best_so_far(results.decision.best)
    won = next(iter(results.decision.confirmed), None)
    if best is None and progress is not None and not directory.searched.exists():
        best = progress.best  # A run beside a study's own searches nothing.
    return _Results(
        results.trials,
        best,
        entry(won.candidate) if won is not None else None,
        results.end_reason(directory),
    )


def all_statuses(results: Path) -> list[StudyStatus]:
    """All studies of a folder by name, and the runs beside them. Raises StorageError."""
    directories = [
        StudyDirectory(root)
        for study in sorted(results.absolute().glob("*"))
        for root in (study, *(study / folder for folder in _FOLDERS))
    ]
    names = [each.root.relative_to(results.absolute()) for each in directories if _is_study(each)]
    return [study_status(results, name.as_posix()) for name in names]


def _is_study(directory: StudyDirectory) -> bool:
    return directory.space.exists() or directory.progress.exists()


def _state_at_rest(progress: Progress | None) -> State:
    if progress is None:
        return "not running"
    if progress.ended is None:
        return "cut off"
    return "done" if progress.ended == "done" else "ended"

"""Where studies stand, read from what their runs have written. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.analysis.summary import SummaryEntry, entry, read_summary
from optimizer.errors import DamagedStudyError, UsageError
from optimizer.measurement.disturbance import DisturbanceCheck
from optimizer.measurement.trial_record import Outcome
from optimizer.study.decision import Decision, decide, stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import outcome_counts
from optimizer.study.progress_file import BestSoFar, Progress, best_so_far, progress_from_json
from optimizer.study.searched_space import read_searched

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
class StudyResults:
    """What the records of a study come to.

    Attributes:
        trials: by outcome.
        decision: the best, and the baseline where it was measured; not always the others.
    """

    trials: Mapping[Outcome, int]
    decision: Decision


def study_results(directory: StudyDirectory, progress: Progress | None) -> StudyResults:
    """Return what the records of a study come to.

    All of them are read only where the run has not written what they come to: of thousands, that
    takes a while.

    Raises:
        StorageError: when a record that is read is damaged.
    """
    if progress is not None and directory.searched.exists() and _is_current(progress, directory):
        best = directory.trials.read(progress.best.number) if progress.best is not None else None
        first = directory.trials.read_first()  # the baseline's
        trials = [record for record in (first, best) if record is not None]
        own, confirmations = read_searched(directory), directory.confirmations.read_all()
        decision = decide(trials, confirmations.values(), own.price, own.demand)
        return StudyResults(progress.trials, decision)
    trials = list(directory.trials.read_all().values())
    return StudyResults(outcome_counts(trials), stored_decision(directory, trials))


def _is_current(progress: Progress, directory: StudyDirectory) -> bool:
    """Return whether no record was written after the progress, but for the last second of a run."""
    if directory.running:
        return progress.ended is None
    written = sum(progress.trials.values()), progress.confirmations
    return written == (len(directory.trials), len(directory.confirmations))


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
    progress = read_progress(directory)
    holder = directory.holder
    state: State = _state_at_rest(progress) if holder is None else "running"
    recorded = study_results(directory, progress)
    decision = recorded.decision
    best = best_so_far(decision.best)
    if best is None and progress is not None and not directory.searched.exists():
        best = progress.best  # A run beside a study's own searches nothing.
    won = next(iter(decision.confirmed), None)
    return StudyStatus(
        name=study,
        state=state,
        progress=progress,
        trials=recorded.trials,
        best=best,
        confirmed=entry(won.candidate) if won is not None else None,
        search_ended=search_end(directory, recorded),
        disturbance=next(reversed(directory.disturbance.read()), None),
        run_by=holder.text if holder is not None else None,
    )


def search_end(directory: StudyDirectory, results: StudyResults) -> str | None:
    """Return why the search has ended, by a summary that nothing was measured after."""
    summary = read_summary(directory)
    if summary is None or not summary.is_current(sum(results.trials.values()), results.decision):
        return None
    return summary.ended


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


def read_progress(directory: StudyDirectory) -> Progress | None:
    """Return what the latest run has written; None of runs that wrote none.

    Raises:
        StorageError: when the file is damaged.
    """
    if not directory.progress.exists():
        return None
    try:
        return progress_from_json(directory.read_json(directory.progress))
    except ValueError as error:
        raise DamagedStudyError(directory.progress, error) from error


def _state_at_rest(progress: Progress | None) -> State:
    if progress is None:
        return "not running"
    if progress.ended is None:
        return "cut off"
    return "done" if progress.ended == "done" else "ended"

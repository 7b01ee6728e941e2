"""Where studies stand, read from what their runs have written. Nothing is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from optimizer.analysis.summary import SummaryEntry, entry, read_summary
from optimizer.errors import DamagedStudyError, UsageError
from optimizer.measurement.disturbance import DisturbanceCheck
from optimizer.measurement.trial_record import Outcome, TrialRecord
from optimizer.study.decision import Decision, stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import History
from optimizer.study.progress_file import BestSoFar, Progress, best_so_far, progress_from_json

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
    holder = directory.holder
    state: State = _state_at_rest(progress) if holder is None else "running"
    trials = directory.trials.read_all()
    decision = stored_decision(directory)
    best = best_so_far(decision.best)
    if best is None and progress is not None and not directory.searched.exists():
        best = progress.best  # A run beside a study's own searches nothing.
    won = next(iter(decision.confirmed), None)
    return StudyStatus(
        name=study,
        state=state,
        progress=progress,
        trials=History(trials).counts(),
        best=best,
        confirmed=entry(won.candidate) if won is not None else None,
        search_ended=_stop_reason(directory, list(trials.values()), decision),
        disturbance=next(reversed(directory.disturbance.read()), None),
        run_by=holder.text if holder is not None else None,
    )


def _stop_reason(
    directory: StudyDirectory, trials: Sequence[TrialRecord], decision: Decision
) -> str | None:
    """Why the search has ended, by a summary that nothing was measured after."""
    summary = read_summary(directory)
    current = summary is not None and summary.is_current(trials, decision)
    return summary.ended if summary is not None and current else None


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


def _progress(directory: StudyDirectory) -> Progress | None:
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

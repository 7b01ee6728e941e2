"""Whether a study is finished within a budget."""

from __future__ import annotations

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.analysis.summary import StudySummary, read_summary
from optimizer.export.bundle.repository import holds_configuration
from optimizer.search.samplers import CALIBRATED
from optimizer.space_file.reader import Budget
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import History


def finished_summary(
    directory: StudyDirectory, budget: Budget, sampler: str
) -> StudySummary | None:
    """Return the summary of a study that has nothing left to do within this budget, or None."""
    summary = read_summary(directory)
    if summary is None or not directory.searched.exists():
        return None
    study = read_study(directory.root.parent, directory.name)
    spent = History({record.number: record for record in study.trials}).trials_spent
    converged = summary.settled and sampler in CALIBRATED
    done = spent >= budget.trials or summary.space_exhausted or converged
    return study.summary if done and _is_exported(study) else None


def _is_exported(study: StudyReading) -> bool:
    """Return whether best/ holds the recommended configuration, which must be confirmed."""
    best, folder = study.own_decision.best, study.directory.best
    if best is None:
        return not folder.exists()
    return best.confirmed and holds_configuration(folder, best.config)

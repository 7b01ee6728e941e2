"""Whether a study has nothing left to do, so that a rerun shows its summary at once."""

from __future__ import annotations

from collections.abc import Collection

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.analysis.summary import StudySummary, read_summary
from optimizer.export.bundle.repository import holds_configuration
from optimizer.search.samplers import CALIBRATED
from optimizer.search.winner_phase import WinnerTest, missing_tests
from optimizer.space_file.reader import Budget
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import History
from optimizer.study.search_status import is_certified


def finished_summary(
    directory: StudyDirectory, budget: Budget, sampler: str, winner_tests: Collection[WinnerTest]
) -> StudySummary | None:
    """Return the summary of a study that has nothing left to do within a budget; None for others.

    Args:
        winner_tests: what must be measured of its best configuration.
    """
    summary = read_summary(directory)
    if summary is None or not directory.searched.exists():
        return None
    ended = summary.space_exhausted or (
        summary.settled and sampler in CALIBRATED and has_certified(summary.remaining_gap, budget)
    )
    if not ended and len(directory.trials) < budget.trials:
        return None
    study = read_study(directory.root.parent, directory.name)
    spent = History({record.number: record for record in study.trials}).trials_spent
    if not ((ended or spent >= budget.trials) and _is_exported(study)):
        return None
    best = study.own_decision.best
    if best is not None and missing_tests(directory, best.config, winner_tests):
        return None
    return study.summary


def has_certified(regret_bound: float | None, budget: Budget) -> bool:
    """Return whether a bound on the regret is as low as the budget states, if it states one."""
    percent = budget.regret_percent
    return percent is None or is_certified(regret_bound, percent)


def _is_exported(study: StudyReading) -> bool:
    """Return whether best/ holds the recommended configuration, which must be confirmed."""
    best, folder = study.own_decision.best, study.directory.best
    if best is None:
        return not folder.exists()
    return best.confirmed and holds_configuration(folder, best.config)

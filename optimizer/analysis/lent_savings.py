"""What a study has saved by the service times that a study of other hardware lent it."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.analysis.study_reading import StudyReading, read_study
from optimizer.errors import OptimizerError
from optimizer.search.lent_calibration import run_seconds
from optimizer.simulator.calibration import calibration_points


@dataclass(frozen=True)
class LentSavings:
    """What a study has saved.

    Attributes:
        lender: study that lent its service times.
        runs: calibration runs of this study.
        saved_runs, saved_seconds: calibration runs that were not made, and the time that as many
            took the lender.
        trials_to_best: trials up to the recommended one, here and in the lender's study; None where
            there is none, or the lender's study is not in the same folder.
    """

    lender: str
    runs: int
    saved_runs: int
    saved_seconds: float
    trials_to_best: tuple[int | None, int | None]


def lent_savings(study: StudyReading) -> LentSavings | None:
    """Return what a study has saved; None where no other lent it anything. Raises StorageError."""
    lent = [*study.directory.prior.read_all().values()]
    if not lent:
        return None
    name = lent[0].origin or ""
    runs = len(study.calibration)
    saved = max(0, len(calibration_points(study.searched.search_space)) - 1 - runs)
    try:
        lender = read_study(study.directory.root.parent, name)
    except OptimizerError:
        lender = None
    there = _trials_to_best(lender) if lender is not None else None
    to_best = _trials_to_best(study), there
    return LentSavings(name, runs, saved, saved * run_seconds(lent), to_best)


def _trials_to_best(study: StudyReading) -> int | None:
    best = study.own_decision.best
    if best is None:
        return None
    return 1 + [record.number for record in study.trials].index(best.trial.number)

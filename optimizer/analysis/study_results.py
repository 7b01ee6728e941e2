"""What the records of a study come to, read as few of them as it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from optimizer.analysis.summary import current_summary
from optimizer.measurement.trial_record import Outcome
from optimizer.study.decision import Decision, decide, stored_decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import outcome_counts
from optimizer.study.progress import Progress
from optimizer.study.progress_file import best_so_far
from optimizer.study.searched_space import read_searched


@dataclass(frozen=True)
class StudyResults:
    """What the records of a study come to.

    Attributes:
        trials: by outcome.
        decision: the best, and the baseline where it was measured; not always the others.
    """

    trials: Mapping[Outcome, int]
    decision: Decision

    def end_reason(self, directory: StudyDirectory) -> str | None:
        """Return why the search has ended, by a summary that nothing was measured after."""
        best = best_so_far(self.decision.best)
        summary = current_summary(directory, sum(self.trials.values()), best)
        return None if summary is None else summary.ended


def study_results(directory: StudyDirectory, progress: Progress | None) -> StudyResults:
    """Return what the records of a study come to.

    All of them are read only where the run has not written what they come to: of thousands, that
    takes a while.

    Raises:
        StorageError: when a record that is read is damaged.
    """
    if progress is not None and directory.searched.exists() and progress.is_current(directory):
        best = directory.trials.read(progress.best.number) if progress.best is not None else None
        first = directory.trials.read_first()  # the baseline's
        trials = [record for record in (first, best) if record is not None]
        own, confirmations = read_searched(directory), directory.confirmations.read_all()
        decision = decide(trials, confirmations.values(), own.price, own.demand)
        return StudyResults(progress.trials, decision)
    trials = list(directory.trials.read_all().values())
    return StudyResults(outcome_counts(trials), stored_decision(directory, trials))

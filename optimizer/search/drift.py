"""Whether the machine keeps its pace: the baseline's saturation, run again every few trials.

A trial's figures hold for the machine as it was. Where that slows down in the night, because it is
shared or grows hot, later trials look worse than earlier ones, and only a configuration that is
known already can show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import Evaluator
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import DriftRunStarted, Note, Watcher
from optimizer.study.history import History

TRIALS_BETWEEN = 10
_NOTABLE = 0.05
"""A change of pace that is worth a word: the stake of most comparisons of two trials."""


@dataclass(frozen=True)
class SaturationRate:
    """What the reference saturated at in one run, requests/s, with its interval at CONFIDENCE."""

    per_second: float
    low: float
    high: float

    def change_from(self, first: SaturationRate) -> float | None:
        """Relative change, None where it is within the noise or not worth a word."""
        change = self.per_second / first.per_second - 1
        apart = self.low > first.high or self.high < first.low
        return change if apart and abs(change) > _NOTABLE else None


def saturation_rates(
    records: Sequence[TrialRecord], reference: ServingConfig
) -> list[SaturationRate]:
    """Every saturation of the reference among these records, in their order."""
    return [
        SaturationRate(*level.rate)
        for record in records
        if record.config == reference and record.measurement is not None
        for level in record.measurement.levels
        if level.kind == "saturation"
    ]


class DriftRuns:
    """Runs the reference between trials when it is due, and says when the pace has changed."""

    def __init__(
        self,
        reference: ServingConfig,
        evaluator: Evaluator,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._reference = reference
        self._evaluator = evaluator
        self._slot = context.slot
        self._runs = ResumableRuns(directory.drift_runs, context, watch)
        self._watch = watch
        self._due_at = 0
        """Trials measured here: a study that goes on finds another machine, and it is due."""

    def before_trial(self, history: History) -> None:
        """Run the reference if it is due and has had its own trial.

        Raises:
            StorageError: when the record cannot be written.
        """
        if history.trials_spent < self._due_at:
            return
        self._due_at = history.trials_spent + TRIALS_BETWEEN
        first = saturation_rates(history.records, self._reference)
        if not first:
            return
        self._watch(DriftRunStarted(self._reference))
        evaluation = self._evaluator.saturate(self._reference, self._slot)
        record = self._runs.keep(self._reference, evaluation)
        for now in saturation_rates([record], self._reference):
            change = now.change_from(first[0])
            if change is not None:
                self._watch(
                    Note(
                        f"the machine's pace changed by {change:+.0%} since the baseline's trial: "
                        f"it saturates at {now.per_second:.0f}/s now, at "
                        f"{first[0].per_second:.0f}/s then; trials of different times differ by "
                        "as much (keep other work off this machine)",
                        warning=True,
                    )
                )

"""Drift of the machine: the baseline's saturation rate, measured again every few trials.

A machine that is shared or overheats slows down, and later trials then look worse than earlier
ones. Only a configuration that was measured before can show it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.resumable_runs import ResumableRuns
from optimizer.search.worker_pool import Task
from optimizer.study.context import StudyContext
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import DriftRunStarted, Note, Watcher
from optimizer.study.history import History

TRIALS_BETWEEN = 10
_NOTABLE_DRIFT = 0.05


@dataclass(frozen=True)
class SaturationRate:
    """Saturation rate of one run in requests/s, with its interval at `CONFIDENCE`."""

    per_second: float
    low: float
    high: float

    def drift_from(self, first: SaturationRate) -> float | None:
        """Return the relative change, None where it is within the noise or below 5 %."""
        drift = self.per_second / first.per_second - 1
        significant = self.low > first.high or self.high < first.low
        return drift if significant and abs(drift) > _NOTABLE_DRIFT else None


def saturation_rates(records: Sequence[TrialRecord], config: ServingConfig) -> list[SaturationRate]:
    """Return the saturation rates of one configuration in these records, in their order."""
    return [
        SaturationRate(*level.rate)
        for record in records
        if record.config == config and record.measurement is not None
        for level in record.measurement.levels
        if level.kind == "saturation"
    ]


class DriftRuns:
    """Says when the baseline is due to be measured again, and warns of drift."""

    def __init__(
        self,
        baseline: ServingConfig,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._baseline = baseline
        self._runs = ResumableRuns(directory.drift_runs, context, watch)
        self._watch = watch
        # In trials of the budget. A resumed study may run on another machine: it is due at once.
        self._due_at = 0

    def next_run(self, history: History) -> Task | None:
        """Return a run of the baseline where one is due and the baseline has had its own trial."""
        if history.trials_spent < self._due_at:
            return None
        self._due_at = history.trials_spent + TRIALS_BETWEEN
        if not saturation_rates(history.records_of(self._baseline), self._baseline):
            return None
        self._watch(DriftRunStarted(self._baseline))
        return Task(history.records[-1].number, 1, self._baseline, "saturate", alone=True)

    def finish(self, evaluation: Evaluation, history: History) -> None:
        """Record the result of a run, and warn where it differs from the baseline's trial.

        Raises:
            StorageError: when the record cannot be written.
        """
        first = saturation_rates(history.records_of(self._baseline), self._baseline)[0]
        record = self._runs.record(self._baseline, evaluation)
        for now in saturation_rates([record], self._baseline):
            drift = now.drift_from(first)
            if drift is not None:
                text = (
                    f"machine performance changed by {drift:+.0%} since the baseline's trial: it "
                    f"saturates at {now.per_second:.0f} requests/s now, "
                    f"{first.per_second:.0f} requests/s then; trials measured at different "
                    "times differ by as much; keep other work off this machine"
                )
                self._watch(Note(text, warning=True))

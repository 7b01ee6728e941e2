"""Measurements made one after the other, each kept before the next begins and made only once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.context import StudyContext
from optimizer.study.decision import ConfirmedCapacity, decide
from optimizer.study.events import Phase, PhaseStarted, TrialFinished, TrialStarted, Watcher
from optimizer.study.history import History
from optimizer.study.record_store import RecordStore
from optimizer.study.trial_records import measured_record

Measure = Callable[[ServingConfig], Evaluation]


class ResumableRuns:
    """The measurements of one store: those of earlier runs, and those made now.

    Raises:
        StorageError: when a record of an earlier run is damaged.
    """

    def __init__(self, store: RecordStore, context: StudyContext, watch: Watcher) -> None:
        self._store = store
        self._context = context
        self._watch = watch
        self.history = History(store.read_all())

    def keep(self, config: ServingConfig, evaluation: Evaluation) -> TrialRecord:
        """Write down what was found. Raises StorageError."""
        number = max((record.number for record in self.history.records), default=-1) + 1
        attempt = self.history.attempts(config) + 1
        record = measured_record(number, config, evaluation, self._context, attempt)
        self._store.write(record)
        self.history.add(record)
        return record

    @property
    def best(self) -> ConfirmedCapacity | None:
        """The best of these runs alone, which nothing has confirmed."""
        context = self._context
        return decide(self.history.records, (), context.price, context.demand).best

    def measure_missing(
        self,
        phase: Phase,
        configs: Sequence[ServingConfig],
        measure: Measure,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Mapping[ServingConfig, TrialRecord]:
        """Measure what was not yet; a failure that may pass is tried once more.

        Saturation alone ("bounded") is told by its level, and by nothing else.

        Args:
            go_on: asked before each measurement; what is left when it says no is left out.

        Returns:
            By configuration, the record that decides it: its own, or that of a smaller one which
            ran out of memory.

        Raises:
            StorageError: when a record cannot be written.
        """
        self._watch(PhaseStarted(phase, len(configs)))
        decided: dict[ServingConfig, TrialRecord] = {}
        for step, config in enumerate(configs, 1):
            while (known := self.history.decided(config)) is None and go_on():
                number = len(self.history.records)
                self._watch(TrialStarted(number, step, len(configs), config))
                record = self.keep(config, measure(config))
                if record.outcome != "bounded":
                    self._watch(TrialFinished(record, self.best))
            if known is not None:
                decided[config] = known
        return decided

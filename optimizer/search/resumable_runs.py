"""A series of measurements that is written one by one, so that a resumed run continues it."""

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
    """The measurements of one record store, by earlier runs and by this one.

    Raises:
        StorageError: when a record of an earlier run is damaged.
    """

    def __init__(self, store: RecordStore, context: StudyContext, watch: Watcher) -> None:
        self._store = store
        self._context = context
        self._watch = watch
        self.history = History(store.read_all())

    def record(self, config: ServingConfig, evaluation: Evaluation) -> TrialRecord:
        """Write and return the record of an evaluation. Raises StorageError."""
        number = max((record.number for record in self.history.records), default=-1) + 1
        attempt = self.history.attempts(config) + 1
        record = measured_record(number, config, evaluation, self._context, attempt)
        self._store.write(record)
        self.history.add(record)
        return record

    @property
    def best(self) -> ConfirmedCapacity | None:
        """The best of these measurements, unconfirmed."""
        context = self._context
        return decide(self.history.records, (), context.price, context.demand).best

    def measure_missing(
        self,
        phase: Phase,
        configs: Sequence[ServingConfig],
        measure: Measure,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Mapping[ServingConfig, TrialRecord]:
        """Measure the configurations that have no record; retry a transient failure once.

        A "bounded" result, of saturation alone, is reported by its load level only.

        Args:
            go_on: called before each measurement; the rest is left out once it returns False.

        Returns:
            By configuration, the record that decides it: its own, or that of a smaller one which
            ran out of memory.

        Raises:
            StorageError: when a record cannot be written.
        """
        self._watch(PhaseStarted(phase, len(configs)))
        records: dict[ServingConfig, TrialRecord] = {}
        for step, config in enumerate(configs, 1):
            while (decided := self.history.decided(config)) is None and go_on():
                number = len(self.history.records)
                self._watch(TrialStarted(number, step, len(configs), config))
                record = self.record(config, measure(config))
                if record.outcome != "bounded":
                    self._watch(TrialFinished(record, self.best))
            if decided is not None:
                records[config] = decided
        return records

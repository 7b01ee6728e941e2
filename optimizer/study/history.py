"""The records of a study, and what follows from them for the next trial."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from optimizer.configuration.serving_config import ArtifactSpec, ServingConfig
from optimizer.measurement.cost import Demand, Price, Score, score
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import Outcome, TrialRecord

MAX_ATTEMPTS = 2
"""A transient failure is retried once."""

_BOUND_MARGIN = 0.95
"""Trials less than 5 % below the pruning bound are completed: that may be noise."""

_Shape = tuple[tuple[ArtifactSpec, int, int], ...]
"""Artefact, instance count and largest batch of every model."""


class History:
    """The records of a study in the order in which they were told, and what follows from them.

    It keeps what each question needs, so that the answers take no longer after thousands of trials.

    Args:
        records: by number.
        contradicted: configurations that missed the limits when they were confirmed; their
            trials do not become the incumbent.
    """

    def __init__(
        self,
        records: Mapping[int, TrialRecord],
        contradicted: Collection[ServingConfig] = (),
    ) -> None:
        self._earlier_numbers = frozenset(records)
        self._contradicted = frozenset(contradicted)
        self._take(records.values())

    def add(self, record: TrialRecord) -> None:
        """Add a record, or replace the one of its number."""
        last = self._records[-1] if self._records else None
        if record.number not in self._numbers and (last is None or _told(last) < _told(record)):
            self._append(record)
        else:
            others = (other for other in self._records if other.number != record.number)
            self._take([*others, record])

    def _take(self, records: Iterable[TrialRecord]) -> None:
        self._numbers = set[int]()
        self._records: list[TrialRecord] = []
        self._ok: list[TrialRecord] = []
        self._of_config: dict[ServingConfig, list[TrialRecord]] = {}
        self._of_shape: dict[_Shape, list[Measurement]] = {}
        self._out_of_memory: list[TrialRecord] = []
        self._incumbent: TrialRecord | None = None
        self._spent = self._failures = 0
        for record in in_order_of_tells(records):
            self._append(record)

    def _append(self, record: TrialRecord) -> None:
        self._numbers.add(record.number)
        self._records.append(record)
        self._of_config.setdefault(record.config, []).append(record)
        self._spent += record.origin is None and not record.unmeasured
        self._failures = self._failures + 1 if record.outcome == "failed" else 0
        if record.failure is not None and record.failure.out_of_memory:
            self._out_of_memory.append(record)
        if record.outcome != "ok":
            return
        self._ok.append(record)
        assert record.measurement is not None, "a record that met the limits has a measurement"
        self._of_shape.setdefault(_shape(record.config), []).append(record.measurement)
        if record.config not in self._contradicted and _cost(record) < _cost(self._incumbent):
            self._incumbent = record

    @property
    def records(self) -> Sequence[TrialRecord]:
        """All records in the order in which they were told."""
        return self._records

    def records_of(self, config: ServingConfig) -> Sequence[TrialRecord]:
        """Return the records of one configuration in that order."""
        return self._of_config.get(config, [])

    @property
    def trials_spent(self) -> int:
        """Number of trials of the budget that are spent.

        Trials carried over from another study do not count, and neither do transient failures.
        """
        return self._spent

    @property
    def unmeasured(self) -> Sequence[TrialRecord]:
        """The latest record of each configuration that could not be measured yet."""
        return _unmeasured(self.records)

    @property
    def ok(self) -> Sequence[TrialRecord]:
        """The records that met the limits."""
        return self._ok

    @property
    def out_of_memory(self) -> Sequence[TrialRecord]:
        """The records of configurations that ran out of memory."""
        return self._out_of_memory

    def counts(self) -> dict[Outcome, int]:
        """Return the number of records by outcome."""
        return outcome_counts(self.records)

    @property
    def incumbent(self) -> TrialRecord | None:
        """The record with the lowest cost at capacity, None while nothing met the limits.

        The search improves on it; `decision.decide` makes the recommendation.
        """
        return self._incumbent

    def attempts(self, config: ServingConfig) -> int:
        """Return how often this configuration was tried."""
        return len(self.records_of(config))

    def decided(self, config: ServingConfig) -> TrialRecord | None:
        """Return the record that makes measuring `config` unnecessary, None where there is none.

        It is its own record, unless that is a transient failure that was not retried yet in this
        run; or the record of a smaller configuration of the same artefact that ran out of memory.
        """
        own = self.records_of(config)
        attempts = sum(record.number not in self._earlier_numbers for record in own)
        for record in reversed(own):
            if not record.unmeasured or attempts >= MAX_ATTEMPTS:
                return record
        return next((record for record in self._out_of_memory if _outgrows(config, record)), None)

    def expected_share(self, config: ServingConfig) -> float | None:
        """Return the share of saturation that the latest similar configuration serves.

        Similar configurations have the same artefacts, instance counts and largest batches.
        """
        for measurement in reversed(self._of_shape.get(_shape(config), [])):
            first = measurement.levels[0]
            if first.kind == "saturation":
                return measurement.load_factor / first.load_factor
        return None

    def failures_in_a_row(self) -> int:
        """Return the number of failures since the last record that did not fail."""
        return self._failures


def outcome_counts(records: Iterable[TrialRecord]) -> dict[Outcome, int]:
    """Return the number of records by outcome."""
    counts: dict[Outcome, int] = {"ok": 0, "infeasible": 0, "bounded": 0, "failed": 0}
    for record in records:
        counts[record.outcome] += 1
    return counts


def in_order_of_tells(records: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return records in the order in which they were told."""
    return sorted(records, key=_told)


def _told(record: TrialRecord) -> tuple[int, int]:
    """Return what records are sorted by, into the order in which they were told.

    Those without a position were told first, by their number: they were carried over from another
    study, or written when trials did not run at the same time.
    """
    return (-1 if record.told_position is None else record.told_position), record.number


def _cost(record: TrialRecord | None) -> tuple[float, int]:
    """Return what the incumbent has least of."""
    if record is None or record.score is None:
        return math.inf, -1
    return record.score.usd_per_million_at_capacity, record.number


def _unmeasured(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    latest = {record.config: record for record in records}
    return [record for record in latest.values() if record.unmeasured]


def why_most_unmeasured(records: Sequence[TrialRecord]) -> str | None:
    """Return why nothing is recommended; None where most configurations were measured.

    Args:
        records: in chronological order.
    """
    unmeasured, tried = _unmeasured(records), len({record.config for record in records})
    if 2 * len(unmeasured) <= tried:
        return None
    return (
        f"{len(unmeasured)} of {tried} configurations could not be measured, so nothing is "
        f"recommended; the last one: {unmeasured[-1].reason}"
    )


def why_all_failed(records: Sequence[TrialRecord]) -> str | None:
    """Return that every configuration failed, and why the last did; None where one did not."""
    if not records or any(record.outcome != "failed" for record in records):
        return None
    tried = len({record.config for record in records})
    return f"all {tried} configurations failed; the last one: {records[-1].reason}"


def _shape(config: ServingConfig) -> _Shape:
    return tuple((m.artifact, m.instance_count, m.max_batch_size) for m in config.models)


def _outgrows(config: ServingConfig, record: TrialRecord) -> bool:
    """Whether `config` is at least as large as one that ran out of memory."""
    if record.failure is None or not record.failure.out_of_memory:
        return False
    return all(
        large.artifact == small.artifact
        and large.most_instances >= small.most_instances
        and large.max_batch_size >= small.max_batch_size
        for large, small in zip(config.models, record.config.models, strict=True)
    )


def prune_load_factor(incumbent: TrialRecord | None, demand: Demand) -> float | None:
    """Return the load factor below which a configuration is worse than the incumbent.

    Below it a configuration needs one more replica. With an equal number of replicas the other
    rules of the recommendation may still prefer it.
    """
    if incumbent is None or incumbent.score is None:
        return None
    return _BOUND_MARGIN * (1 + demand.headroom) / incumbent.score.replicas


def scored(measurement: Measurement, price: Price, demand: Demand) -> Score | None:
    """Return the cost of a measured capacity; None where no load met the limits."""
    if measurement.load_factor <= 0:
        return None
    return score(
        measurement.capacity_per_second, measurement.capacity_low_per_second, price, demand
    )

"""The records of a study, and what follows from them for the next trial."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import Demand, Price, Score, score
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import Outcome, TrialRecord

MAX_ATTEMPTS = 2
"""A transient failure is retried once."""

_BOUND_MARGIN = 0.95
"""Trials less than 5 % below the pruning bound are completed: that may be noise."""


class History:
    """The records of a study by number.

    Args:
        contradicted: configurations that missed the limits when they were confirmed; their
            trials do not become the incumbent.
    """

    def __init__(
        self,
        records: Mapping[int, TrialRecord],
        contradicted: Collection[ServingConfig] = (),
    ) -> None:
        self._records = dict(records)
        self._earlier_numbers = frozenset(records)
        self._contradicted = frozenset(contradicted)

    def add(self, record: TrialRecord) -> None:
        """Add a record."""
        self._records[record.number] = record

    @property
    def records(self) -> Sequence[TrialRecord]:
        """All records in the order of their numbers."""
        return [self._records[number] for number in sorted(self._records)]

    @property
    def trials_spent(self) -> int:
        """Number of trials of the budget that are spent.

        Trials carried over from another study do not count, and neither do transient failures.
        """
        return sum(r.origin is None and not r.unmeasured for r in self._records.values())

    @property
    def unmeasured(self) -> Sequence[TrialRecord]:
        """The latest record of each configuration that could not be measured yet."""
        return _unmeasured(self.records)

    @property
    def ok(self) -> Sequence[TrialRecord]:
        """The records that met the limits."""
        return [record for record in self.records if record.outcome == "ok"]

    def counts(self) -> dict[Outcome, int]:
        """Return the number of records by outcome."""
        counts: dict[Outcome, int] = {"ok": 0, "infeasible": 0, "bounded": 0, "failed": 0}
        for record in self.records:
            counts[record.outcome] += 1
        return counts

    @property
    def incumbent(self) -> TrialRecord | None:
        """The record with the lowest cost at capacity, None while nothing met the limits.

        The search improves on it; `decision.decide` makes the recommendation.
        """
        priced = [
            (r.score.usd_per_million_at_capacity, r.number)
            for r in self.ok
            if r.score and r.config not in self._contradicted
        ]
        return self._records[min(priced)[1]] if priced else None

    def attempts(self, config: ServingConfig) -> int:
        """Return how often this configuration was tried."""
        return sum(record.config == config for record in self.records)

    def decided(self, config: ServingConfig) -> TrialRecord | None:
        """Return the record that makes measuring `config` unnecessary, None where there is none.

        It is its own record, unless that is a transient failure that was not retried yet in this
        run; or the record of a smaller configuration of the same artefact that ran out of memory.
        """
        own = [record for record in self.records if record.config == config]
        attempts = sum(record.number not in self._earlier_numbers for record in own)
        for record in reversed(own):
            if not record.unmeasured or attempts >= MAX_ATTEMPTS:
                return record
        return next((record for record in self.records if _outgrows(config, record)), None)

    def expected_share(self, config: ServingConfig) -> float | None:
        """Return the share of saturation that the latest similar configuration serves.

        Similar configurations have the same artefacts, instance counts and largest batches.
        """
        for record in reversed(self.ok):
            assert record.measurement is not None, "a record that met the limits has a measurement"
            saturation = record.measurement.levels[0]
            if saturation.kind == "saturation" and _similar(config, record.config):
                return record.measurement.load_factor / saturation.load_factor
        return None

    def failures_in_a_row(self) -> int:
        """Return the number of failures since the last record that did not fail."""
        count = 0
        for record in reversed(self.records):
            if record.outcome != "failed":
                return count
            count += 1
        return count


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


def _similar(config: ServingConfig, other: ServingConfig) -> bool:
    return all(
        one.artifact == two.artifact
        and one.instance_count == two.instance_count
        and one.max_batch_size == two.max_batch_size
        for one, two in zip(config.models, other.models, strict=True)
    )


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

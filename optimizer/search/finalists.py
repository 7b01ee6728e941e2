"""The finalists: which trials the confirm phase measures again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.measurement.cost import Candidate, score, tie_break_key
from optimizer.measurement.disturbance import NOTABLE_SLOWDOWN
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.context import StudyContext
from optimizer.study.decision import p95_at_lowest_load

FINALISTS = 3
"""Configurations that are confirmed at least, where there are so many."""

_TIES = 3
_TIED = 0.02
"""Up to `_TIES` records that differ from the best in queueing parameters alone, with a capacity
within this share, are finalists too: single trials cannot distinguish them."""

_MOST_DISTURBED = 2
"""Up to so many records are finalists because other processes slowed their trials down."""


def finalists_of(queue: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the records that are measured again, of those that met the limits, best first."""
    finalists = [*queue[:FINALISTS], *_ties(queue)]
    return finalists + [record for record in _disturbed(queue) if record not in finalists]


def _ties(queue: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the records tied with the best that are not finalists by their rank."""
    tied = [r for r in queue[1:] if _differs_in_queueing(r, queue[0]) and _as_cheap(r, queue[0])]
    return [record for record in tied[:_TIES] if record not in queue[:FINALISTS]]


def _disturbed(queue: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return records that may be the best, had other processes not slowed their trials down."""
    better = [
        record
        for record in queue[1:]
        if measurement_of(record).slowdown > 1 + NOTABLE_SLOWDOWN
        and _undisturbed(record) > _undisturbed(queue[0])
    ]
    return better[:_MOST_DISTURBED]


def _undisturbed(record: TrialRecord) -> float:
    """Return the load factor that it may have had, had no other process run."""
    measurement = measurement_of(record)
    return measurement.load_factor * measurement.slowdown


def _differs_in_queueing(record: TrialRecord, other: TrialRecord) -> bool:
    """Whether two configurations differ in dynamic batching alone."""
    return all(
        replace(one, batching=two.batching) == two
        for one, two in zip(record.config.models, other.config.models, strict=True)
    )


def _as_cheap(record: TrialRecord, other: TrialRecord) -> bool:
    one, two = (measurement_of(each).load_factor for each in (record, other))
    return abs(one / two - 1) < _TIED


def measurement_of(record: TrialRecord) -> Measurement:
    """Return the measurement of a record that met the limits, which has one."""
    assert record.measurement is not None, "a record that met the limits was measured"
    return record.measurement


def ranked(records: Sequence[TrialRecord], context: StudyContext) -> list[TrialRecord]:
    """Return records that met the limits, best first by their estimated capacity.

    The recommendation ranks by lower bounds; here they would keep a configuration with one wide
    interval from ever being measured again.
    """
    return sorted(records, key=lambda record: _rank(record, context))


def _rank(record: TrialRecord, context: StudyContext) -> tuple[float, ...]:
    measurement = measurement_of(record)
    capacity = measurement.capacity_per_second
    likely = score(capacity, capacity, context.price, context.demand)
    p95 = p95_at_lowest_load(measurement)
    candidate = Candidate(record.config, measurement, likely, p95)
    return (likely.fleet_usd_per_hour, *tie_break_key(candidate), record.number)

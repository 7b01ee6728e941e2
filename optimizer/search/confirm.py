"""The confirm phase: the winner, its closest rivals and the baseline are measured anew, in turn.

The best of many noisy figures is too good on average, so only what is measured here is reported.
Each round measures every finalist at saturation, at its capacity and at the demand per replica; one
that misses the limit at its capacity steps down until it meets it. Where that makes the winner
dearer than what another trial claims, the other one is measured too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import EverythingFailedError
from optimizer.load.certification import CertificationTask
from optimizer.measurement.cost import Candidate, replicas_for, score, tie_break_key
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.evaluator import Confirmer
from optimizer.study.confidence import CapacityClaim
from optimizer.study.context import StudyContext
from optimizer.study.decision import (
    ROUNDS,
    ConfirmedCapacity,
    Decision,
    claims_of,
    decide,
    p95_at_lowest_load,
    rounds_of,
)
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, TrialFinished, TrialStarted, Watcher
from optimizer.study.history import MAX_ATTEMPTS, History

_FINALISTS = 3
_TIES = 3
_TIED = 0.02
"""So many records that differ from the first in queueing alone, and serve this much the same, are
measured beside it: no trial by itself can tell them apart."""

_BASELINE_REQUESTS = 500
"""In each round: its figures were not chosen among many, and it may be very slow."""


@dataclass(frozen=True)
class Confirmed:
    """What the confirm phase found.

    Attributes:
        baseline: None where the baseline met the limits at no load.
        best: the equal-cost set, best first; empty when nothing could be confirmed.
        claims: how far the best is from every other one that was confirmed.
        unconfirmed: the best by its trial alone, where nothing could be confirmed and no
            measurement contradicts it.
    """

    baseline: Candidate | None
    best: tuple[Candidate, ...]
    claims: tuple[CapacityClaim, ...] = ()
    unconfirmed: ConfirmedCapacity | None = None


def confirmed_by(
    decision: Decision, confirmations: Collection[TrialRecord], reference: ServingConfig
) -> Confirmed:
    """Return what the confirm phase found, by all of the study's records.

    Args:
        reference: the baseline.
    """
    if not decision.confirmed:
        return Confirmed(None, (), unconfirmed=decision.best)
    baseline = decision.entry_of(reference)
    return Confirmed(
        baseline.candidate if baseline is not None else None,
        tuple(each.candidate for each in decision.equal_cost),
        claims_of(decision, confirmations),
    )


class ConfirmPhase:
    """Measures the finalists of a study again."""

    def __init__(
        self,
        evaluator: Confirmer,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._evaluator = evaluator
        self._directory = directory
        self._context = context
        self._watch = watch
        self._records = dict(directory.confirmations.read_all())

    def run(self, history: History, reference: ServingConfig) -> Confirmed:
        """Confirm the best of `history`, and the baseline `reference` for comparison.

        Raises:
            EverythingFailedError: when most of the best could not be measured again.
            StorageError: when a record cannot be written.
        """
        queue = ranked(history.ok, self._context)
        finalists = [*queue[:_FINALISTS], *_ties(queue)]
        queue = [record for record in queue if record not in finalists]
        known = next((r for r in history.ok if r.config == reference), None)
        entrants = [*finalists, *([known] if known is not None and known not in finalists else [])]
        whole = math.ceil(self._context.confirm_requests / ROUNDS)
        self._watch(PhaseStarted("confirm", ROUNDS * len(entrants)))
        for _ in range(ROUNDS):
            for record in entrants:
                requests = whole if record in finalists else _BASELINE_REQUESTS
                self._measure(record, requests, history)
        self._refuse_if_most_were_unmeasured(finalists)
        while (other := self._cheaper_claim(queue, history)) is not None:
            queue.remove(other)
            self._watch(Note(f"the winner gave way; next is {describe(other.config)}", True))
            for _ in range(ROUNDS):
                self._measure(other, whole, history)
        return confirmed_by(self._decision(history), self._records.values(), reference)

    def _refuse_if_most_were_unmeasured(self, finalists: Sequence[TrialRecord]) -> None:
        """Say which finalists could not be measured; raise where these are most of them."""
        missing = [r.config for r in finalists if len(self._rounds(r.config)) < ROUNDS]
        reasons = {r.config: r.reason for r in self._records.values() if r.unmeasured}
        for config in missing:
            text = f"{describe(config)} could not be confirmed: {reasons[config]}"
            self._watch(Note(text, warning=True))
        if 2 * len(missing) > len(finalists):
            raise EverythingFailedError(
                f"{len(missing)} of the {len(finalists)} best configurations could not be measured "
                f"again, so nothing is recommended; the last one: {reasons[missing[-1]]}"
            )

    def _decision(self, history: History) -> Decision:
        context = self._context
        return decide(history.records, self._records.values(), context.price, context.demand)

    def _cheaper_claim(self, queue: Sequence[TrialRecord], history: History) -> TrialRecord | None:
        """Return the first unconfirmed record that claims a cheaper fleet than any confirmed."""
        confirmed = self._decision(history).confirmed
        cheapest = min((c.candidate.score.fleet_usd_per_hour for c in confirmed), default=math.inf)
        return next(
            (r for r in queue if r.score is not None and r.score.fleet_usd_per_hour < cheapest),
            None,
        )

    def _rounds(self, config: ServingConfig) -> list[TrialRecord]:
        return rounds_of(config, self._records.values())

    def _measure(self, record: TrialRecord, requests: int, history: History) -> None:
        """Measure one more round of a finalist, unless an earlier run has measured enough."""
        done = len(self._rounds(record.config))
        for _ in range(MAX_ATTEMPTS):
            if done < ROUNDS and len(self._rounds(record.config)) == done:
                again = self._attempt(record, done, requests)
                self._watch(TrialFinished(again, self._decision(history).best))

    def _attempt(self, record: TrialRecord, done: int, requests: int) -> TrialRecord:
        measurement = _measured(record)
        number = max(self._records, default=-1) + 1
        self._watch(TrialStarted(record.number, done + 1, ROUNDS, record.config))
        task = CertificationTask(measurement.load_factor, requests, self._per_replica)
        evaluation = self._evaluator.confirm(record.config, self._context.slot, task)
        again = replace(
            record,
            number=number,
            outcome=evaluation.outcome,
            reason=evaluation.reason,
            measurement=evaluation.measurement,
            score=None,
            failure=evaluation.failure,
            seconds=evaluation.seconds,
            further=(),
            told_further=(),
        )
        self._directory.confirmations.write(again)
        self._records[number] = again
        return again

    def _per_replica(self, load_factor: float) -> float:
        """Load of one of the replicas that serve the demand, each with this capacity."""
        demand = self._context.demand
        whole = demand.requests_per_second
        replicas = replicas_for(demand, load_factor * whole)
        return min(load_factor, (1 + demand.headroom) / replicas)


def _ties(queue: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Of those that are no finalists by their rank, the ones that are tied with the first."""
    tied = [r for r in queue[1:] if _differs_in_queueing(r, queue[0]) and _as_cheap(r, queue[0])]
    return [record for record in tied[:_TIES] if record not in queue[:_FINALISTS]]


def _differs_in_queueing(record: TrialRecord, other: TrialRecord) -> bool:
    """Whether only queue delay and preferred sizes differ."""
    return all(
        replace(one, batching=two.batching) == two
        for one, two in zip(record.config.models, other.config.models, strict=True)
    )


def _as_cheap(record: TrialRecord, other: TrialRecord) -> bool:
    one, two = (_measured(each).load_factor for each in (record, other))
    return abs(one / two - 1) < _TIED


def _measured(record: TrialRecord) -> Measurement:
    assert record.measurement is not None, "a record that met the limits was measured"
    return record.measurement


def ranked(records: Sequence[TrialRecord], context: StudyContext) -> list[TrialRecord]:
    """Records that met the limits, best first, as if each held what it is thought to hold.

    Not by the lower bounds that the recommendation goes by: one that was measured badly would never
    be measured well.
    """
    return sorted(records, key=lambda record: _rank(record, context))


def _rank(record: TrialRecord, context: StudyContext) -> tuple[float, ...]:
    measurement = _measured(record)
    capacity = measurement.capacity_per_second
    likely = score(capacity, capacity, context.price, context.demand)
    p95 = p95_at_lowest_load(measurement)
    candidate = Candidate(record.config, measurement, likely, p95)
    return (likely.fleet_usd_per_hour, *tie_break_key(candidate), record.number)

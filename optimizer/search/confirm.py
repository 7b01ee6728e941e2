"""The confirm phase: the winner, its closest rivals and the baseline are measured again, in turn.

The best of many noisy measurements is optimistic, so only what is measured here is reported. Each
round measures every finalist at saturation, at its capacity and at the demand per replica; one
that misses the limit at its capacity steps down until it meets it. Where that makes the winner
more expensive than another trial's capacity promises, that trial's configuration is confirmed too.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import EverythingFailedError
from optimizer.load.certification import CertificationTask
from optimizer.measurement.cost import Candidate, Demand, replicas_for, score, tie_break_key
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
    contradicted_by,
    decide,
    p95_at_lowest_load,
    rounds_of,
)
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, TrialFinished, TrialStarted, Watcher
from optimizer.study.history import MAX_ATTEMPTS, History
from optimizer.study.trial_records import confirmation_record

_FINALISTS = 3
_TIES = 3
_TIED = 0.02
"""Up to `_TIES` records that differ from the best in queueing parameters alone, with a capacity
within this share, are finalists too: single trials cannot distinguish them."""

_BASELINE_REQUESTS = 500
"""In each round: the baseline was not selected among many, and it may be very slow."""


@dataclass(frozen=True)
class Confirmed:
    """The result of the confirm phase.

    Attributes:
        baseline: None where the baseline met the limits at no load.
        best: the equal-cost set, best first; empty when nothing could be confirmed.
        claims: capacity of the best relative to every other confirmed configuration.
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
    """Return the result of the confirm phase, by all of the study's records.

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
    """Measures the finalists of a study again, in rounds."""

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
        self._by_trials: Sequence[ConfirmedCapacity] = ()

    def run(self, history: History, reference: ServingConfig) -> Confirmed:
        """Confirm the best of `history`, and the baseline `reference` for comparison.

        Raises:
            EverythingFailedError: when most of the best could not be measured again.
            StorageError: when a record cannot be written.
        """
        self._by_trials = self._decide(history.records, ()).unconfirmed
        queue = ranked(history.ok, self._context)
        finalists = [*queue[:_FINALISTS], *_ties(queue)]
        queue = [record for record in queue if record not in finalists]
        requests = math.ceil(self._context.confirm_requests / ROUNDS)
        entrants = [(record, requests) for record in finalists]
        baseline = next((r for r in history.ok if r.config == reference), None)
        if baseline is not None and baseline not in finalists:
            entrants.append((baseline, _BASELINE_REQUESTS))
        self._watch(PhaseStarted("confirm", ROUNDS * len(entrants)))
        for rounds in range(1, ROUNDS + 1):
            for record, own_requests in entrants:
                self._measure(record, rounds, own_requests, history)
        self._raise_if_most_were_unmeasured(finalists)
        while (rival := self._cheaper_claim(queue, history)) is not None:
            queue.remove(rival)
            text = f"the winner's confirmed cost rose; confirming {describe(rival.config)} next"
            self._watch(Note(text, True))
            for rounds in range(1, ROUNDS + 1):
                self._measure(rival, rounds, requests, history)
        return confirmed_by(self._decision(history), self._records.values(), reference)

    def _raise_if_most_were_unmeasured(self, finalists: Sequence[TrialRecord]) -> None:
        """Report the finalists that could not be measured; raise where these are most of them."""
        missing = [r.config for r in finalists if len(self._rounds(r.config)) < ROUNDS]
        reasons = {r.config: r.reason for r in self._records.values() if r.unmeasured}
        for config in missing:
            text = f"{describe(config)} could not be confirmed: {reasons[config]}"
            self._watch(Note(text, warning=True))
        if 2 * len(missing) > len(finalists):
            raise EverythingFailedError(
                f"{len(missing)} of the {len(finalists)} best configurations could not be measured "
                f"again, so nothing is recommended; last reason: {reasons[missing[-1]]}"
            )

    def _decision(self, history: History) -> Decision:
        """Return what `decide` does of all records, where only confirmations are new."""
        rounds = self._records.values()
        measured = {record.config for record in rounds}
        own = self._decide([r for r in history.ok if r.config in measured], rounds)
        gone = {each.config for each in own.confirmed} | contradicted_by(rounds).keys()
        others = tuple(each for each in self._by_trials if each.config not in gone)
        return replace(own, unconfirmed=others)

    def _decide(
        self, trials: Iterable[TrialRecord], confirmations: Collection[TrialRecord]
    ) -> Decision:
        return decide(trials, confirmations, self._context.price, self._context.demand)

    def _cheaper_claim(self, queue: Sequence[TrialRecord], history: History) -> TrialRecord | None:
        """Return the first unconfirmed record with a cheaper fleet than any confirmed one."""
        confirmed = self._decision(history).confirmed
        cheapest = min((c.candidate.score.fleet_usd_per_hour for c in confirmed), default=math.inf)
        return next(
            (r for r in queue if r.score is not None and r.score.fleet_usd_per_hour < cheapest),
            None,
        )

    def _rounds(self, config: ServingConfig) -> list[TrialRecord]:
        return rounds_of(config, self._records.values())

    def _measure(self, trial: TrialRecord, rounds: int, requests: int, history: History) -> None:
        """Measure one more round of a configuration, unless it has this many already."""
        completed = len(self._rounds(trial.config))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if completed < rounds and len(self._rounds(trial.config)) == completed:
                self._watch(TrialStarted(trial.number, completed + 1, ROUNDS, trial.config))
                record = self._attempt(trial, requests, attempt)
                self._watch(TrialFinished(record, self._decision(history).best))

    def _attempt(self, trial: TrialRecord, requests: int, attempt: int) -> TrialRecord:
        load_factor = _measured(trial).load_factor
        per_replica = partial(load_factor_per_replica, self._context.demand)
        task = CertificationTask(load_factor, requests, per_replica)
        evaluation = self._evaluator.confirm(trial.config, self._context.slot, task)
        number = max(self._records, default=-1) + 1
        record = confirmation_record(number, trial.config, evaluation, self._context, attempt)
        self._directory.confirmations.write(record)
        self._records[number] = record
        return record


def load_factor_per_replica(demand: Demand, load_factor: float) -> float:
    """Return the load of one of the replicas that serve a demand with this capacity each."""
    replicas = replicas_for(demand, load_factor * demand.requests_per_second)
    return min(load_factor, (1 + demand.headroom) / replicas)


def _ties(queue: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return the records tied with the best that are not finalists by their rank."""
    tied = [r for r in queue[1:] if _differs_in_queueing(r, queue[0]) and _as_cheap(r, queue[0])]
    return [record for record in tied[:_TIES] if record not in queue[:_FINALISTS]]


def _differs_in_queueing(record: TrialRecord, other: TrialRecord) -> bool:
    """Whether two configurations differ in dynamic batching alone."""
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
    """Return records that met the limits, best first by their estimated capacity.

    The recommendation ranks by lower bounds; here they would keep a configuration with one wide
    interval from ever being measured again.
    """
    return sorted(records, key=lambda record: _rank(record, context))


def _rank(record: TrialRecord, context: StudyContext) -> tuple[float, ...]:
    measurement = _measured(record)
    capacity = measurement.capacity_per_second
    likely = score(capacity, capacity, context.price, context.demand)
    p95 = p95_at_lowest_load(measurement)
    candidate = Candidate(record.config, measurement, likely, p95)
    return (likely.fleet_usd_per_hour, *tie_break_key(candidate), record.number)

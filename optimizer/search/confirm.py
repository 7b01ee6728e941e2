"""The confirm phase: the winner, its closest rivals and the baseline are measured anew, in turn.

The best of many noisy figures is too good on average, so only what is measured here is reported.
Each round measures every finalist at saturation, at its capacity and at the demand per replica; one
that misses the limit at its capacity steps down until it meets it. Where that makes the winner
dearer than what another trial claims, the other one is measured too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.cost import (
    Candidate,
    Demand,
    Price,
    equal_cost_set,
    replicas_for,
    score,
    tie_break_key,
)
from optimizer.errors import EverythingFailedError
from optimizer.load.holding import HoldingTask
from optimizer.measurement import LoadLevel, Measurement
from optimizer.search.claims import Claim, Finalist, claims
from optimizer.search.evaluator import Confirmer
from optimizer.search.events import Note, PhaseStarted, TrialEnded, TrialStarted, Watcher
from optimizer.search.history import MAX_ATTEMPTS, History, scored
from optimizer.search.setting import Setting
from optimizer.search.study_directory import StudyDirectory
from optimizer.serving_config import ServingConfig, describe
from optimizer.trial_record import TrialRecord

ROUNDS = 2
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
    """

    baseline: Candidate | None
    best: tuple[Candidate, ...]
    claims: tuple[Claim, ...] = ()


class ConfirmPhase:
    """Measures the finalists of a study again."""

    def __init__(
        self,
        evaluator: Confirmer,
        directory: StudyDirectory,
        setting: Setting,
        watch: Watcher,
    ) -> None:
        self._evaluator = evaluator
        self._directory = directory
        self._setting = setting
        self._watch = watch
        self._records = dict(directory.confirmations.read_all())

    def run(self, history: History, reference: ServingConfig) -> Confirmed:
        """Confirm the best of `history`, and the baseline `reference` for comparison.

        Raises:
            EverythingFailedError: when most of the best could not be measured again.
            StorageError: when a record cannot be written.
        """
        queue = ranked(history.ok, self._setting)
        finalists = [*queue[:_FINALISTS], *_ties(queue)]
        queue = [record for record in queue if record not in finalists]
        known = next((r for r in history.ok if r.config == reference), None)
        entrants = [*finalists, *([known] if known is not None and known not in finalists else [])]
        whole = math.ceil(self._setting.confirm_requests / ROUNDS)
        self._watch(PhaseStarted("confirm", ROUNDS * len(entrants)))
        for _ in range(ROUNDS):
            for record in entrants:
                self._measure(record, whole if record in finalists else _BASELINE_REQUESTS)
        self._refuse_if_most_were_unmeasured(finalists)
        confirmed = [c for r in finalists if (c := self._candidate(r)) is not None]
        while (other := next((r for r in queue if _claims_less(r, confirmed)), None)) is not None:
            queue.remove(other)
            self._watch(Note(f"the winner gave way; next is {describe(other.config)}", True))
            for _ in range(ROUNDS):
                self._measure(other, whole)
            confirmed += [c for c in [self._candidate(other)] if c is not None]
        baseline = self._candidate(known) if known is not None else None
        best = tuple(equal_cost_set(confirmed))
        everyone = [*best, *confirmed, *([baseline] if baseline is not None else [])]
        return Confirmed(baseline, best, self._claims(everyone) if best else ())

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

    def _claims(self, everyone: Sequence[Candidate]) -> tuple[Claim, ...]:
        """How far the first is from each of the others, who may be named twice."""
        winner, *others = (
            Finalist(config, tuple(self._held(config)[:ROUNDS]))
            for config in dict.fromkeys(candidate.config for candidate in everyone)
        )
        return claims(winner, others)

    def _held(self, config: ServingConfig) -> list[Measurement]:
        return held_rounds(self._rounds(config))

    def _rounds(self, config: ServingConfig) -> list[TrialRecord]:
        """What was measured of a configuration; a failure that may pass is no round."""
        of = [record for record in self._records.values() if record.config == config]
        return [record for record in of if not record.unmeasured]

    def _measure(self, record: TrialRecord, requests: int) -> None:
        """One more round of one finalist, unless an earlier run has measured enough of them."""
        done = len(self._rounds(record.config))
        for _ in range(MAX_ATTEMPTS):
            if done < ROUNDS and len(self._rounds(record.config)) == done:
                self._attempt(record, done, requests)

    def _attempt(self, record: TrialRecord, done: int, requests: int) -> None:
        measurement = _measured(record)
        number = max(self._records, default=-1) + 1
        self._watch(TrialStarted(record.number, done + 1, ROUNDS, record.config))
        task = HoldingTask(measurement.load_factor, requests, self._per_replica)
        evaluation = self._evaluator.confirm(record.config, self._setting.slot, task)
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
        self._watch(TrialEnded(again, None))

    def _per_replica(self, load_factor: float) -> float:
        """Load of one of the replicas that serve the demand, each with this capacity."""
        demand = self._setting.demand
        whole = demand.requests_per_second
        replicas = replicas_for(demand, load_factor * whole)
        return min(load_factor, (1 + demand.headroom) / replicas)

    def _candidate(self, record: TrialRecord) -> Candidate | None:
        """What all rounds together certify; None unless it held in every one."""
        held = self._held(record.config)
        return certified(record.config, held, self._setting.price, self._setting.demand)


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


def _claims_less(record: TrialRecord, confirmed: Sequence[Candidate]) -> bool:
    """Whether an unconfirmed record would be a cheaper fleet than what was confirmed."""
    assert record.score is not None, "a record that met the limits has a cost"
    claimed = record.score.fleet_usd_per_hour
    return all(claimed < candidate.score.fleet_usd_per_hour for candidate in confirmed)


def ranked(records: Sequence[TrialRecord], setting: Setting) -> list[TrialRecord]:
    """Records that met the limits, best first, as if each held what it is thought to hold.

    Not by the lower bounds that the recommendation goes by: one that was measured badly would never
    be measured well.
    """
    return sorted(records, key=lambda record: _rank(record, setting))


def _rank(record: TrialRecord, setting: Setting) -> tuple[float, ...]:
    measurement = _measured(record)
    capacity = measurement.capacity_per_second
    likely = score(capacity, capacity, setting.price, setting.demand)
    p95 = _p95_at_lowest_load(measurement)
    candidate = Candidate(record.config, measurement, likely, p95)
    return (likely.fleet_usd_per_hour, *tie_break_key(candidate), record.number)


def held_rounds(rounds: Sequence[TrialRecord]) -> list[Measurement]:
    """The rounds in which a load was held."""
    return [each.measurement for each in rounds if each.outcome == "ok" and each.measurement]


def certified(
    config: ServingConfig, held: Sequence[Measurement], price: Price, demand: Demand
) -> Candidate | None:
    """What all rounds of one configuration together certify; None with fewer than `ROUNDS`."""
    if len(held) < ROUNDS:
        return None
    return candidate_of(config, merged(held), price, demand)


def candidate_of(
    config: ServingConfig, measurement: Measurement, price: Price, demand: Demand
) -> Candidate | None:
    """A configuration with its cost; None where it met the limits at no load."""
    cost = scored(measurement, price, demand)
    if cost is None:
        return None
    return Candidate(config, measurement, cost, _p95_at_lowest_load(measurement))


def merged(rounds: Sequence[Measurement]) -> Measurement:
    """The rounds of one configuration as one measurement: the capacity that every round held."""
    least = min(rounds, key=lambda m: m.load_factor)
    return replace(
        least,
        levels=tuple(level for m in rounds for level in m.levels),
        load_factor_low=min(m.load_factor_low for m in rounds),
        load_factor_high=least.load_factor_high,
        ended=f"held in {len(rounds)} rounds",
    )


def levels_near(measurement: Measurement, load_factor: float) -> list[LoadLevel]:
    """The open-loop levels at a load factor, within a thousandth."""
    return [
        level for level in measurement.open_loop if abs(level.load_factor / load_factor - 1) < 1e-3
    ]


def _p95_at_lowest_load(measurement: Measurement) -> float:
    """Worst 95th percentile at the lowest load that was measured: the demand per replica."""
    lowest = min(level.load_factor for level in measurement.open_loop)
    return max(level.latency_ms(95) for level in levels_near(measurement, lowest))

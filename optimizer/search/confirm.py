"""The confirm phase: the winner, its closest rivals and the baseline are measured again, in turn.

The best of many noisy measurements is optimistic, so only what is measured here is reported. Each
round measures every finalist at saturation, at its capacity and at the demand per replica; one
that misses the limit at its capacity steps down until it meets it. Where that makes the winner
more expensive than another trial's capacity promises, that trial's configuration is confirmed too.
A phase that the time left does not suffice for is shortened, see `plan_confirmation`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import EverythingFailedError, TimeIsUpError
from optimizer.load.certification import CertificationTask
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.cost import Candidate
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.confirm_time import (
    ConfirmPlan,
    Entrant,
    least_seconds,
    load_factor_per_replica,
    plan_confirmation,
    reserved_for_confirm,
    round_time,
    shortest_level,
)
from optimizer.search.evaluator import Confirmer, Protocols
from optimizer.search.finalists import FINALISTS, finalists_of, measurement_of, ranked
from optimizer.study.confidence import CapacityClaim
from optimizer.study.context import StudyContext
from optimizer.study.decision import (
    ROUNDS,
    ConfirmedCapacity,
    Decision,
    claims_of,
    contradicted_by,
    decide,
    rounds_of,
)
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, PhaseStarted, TrialFinished, TrialStarted, Watcher
from optimizer.study.history import MAX_ATTEMPTS, History
from optimizer.study.trial_records import confirmation_record

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
        shortened: what was shortened because the time left did not suffice, in words; empty where
            nothing was.
    """

    baseline: Candidate | None
    best: tuple[Candidate, ...]
    claims: tuple[CapacityClaim, ...] = ()
    unconfirmed: ConfirmedCapacity | None = None
    shortened: str = ""


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
    """Measures the finalists of a study again, in rounds.

    Args:
        protocols: of the search and of this phase.
        limit: of the time; the phase is shortened to end by then.
    """

    def __init__(
        self,
        evaluator: Confirmer,
        directory: StudyDirectory,
        context: StudyContext,
        watch: Watcher,
        protocols: Protocols,
        limit: TimeLimit,
    ) -> None:
        self._evaluator = evaluator
        self._directory = directory
        self._context = context
        self._watch = watch
        self._protocols = protocols
        self._limit = limit
        self._records = dict(directory.confirmations.read_all())
        self._plans: list[ConfirmPlan] = []
        self._cut_off = set[ServingConfig]()
        self._ratios: list[float] = []
        self._by_trials: Sequence[ConfirmedCapacity] = ()

    def run(self, history: History, reference: ServingConfig) -> Confirmed:
        """Confirm the best of `history`, and the baseline `reference` for comparison.

        Raises:
            EverythingFailedError: when most of the best could not be measured again.
            StorageError: when a record cannot be written.
        """
        self._by_trials = self._decide(history.records, ()).unconfirmed
        queue = ranked(history.ok, self._context)
        finalists = finalists_of(queue)
        queue = [record for record in queue if record not in finalists]
        entrants = [self._entrant(record, reference) for record in finalists]
        baseline = next((r for r in history.ok if r.config == reference), None)
        if baseline is not None and baseline not in finalists:
            entrants.append(self._entrant(baseline, reference, _BASELINE_REQUESTS))
        plan = self._plan(entrants)
        left = self._limit.left if math.isfinite(self._limit.left) else None
        self._watch(PhaseStarted("confirm", plan.rounds * len(plan.entrants), left))
        for number in range(1, ROUNDS + 1):
            for entrant in entrants:
                self._measure_next(entrant, entrants, number, history)
        self._raise_if_most_were_unmeasured(finalists)
        self._accept_fewer_rounds()
        tried = {record.config for record in self._records.values()}
        left_out = [record for record in finalists if record.config not in tried]
        self._confirm_rivals([*left_out, *queue], history, reference)
        confirmed = confirmed_by(self._decision(history), self._records.values(), reference)
        return replace(confirmed, shortened=self._shortened)

    def _confirm_rivals(
        self, queue: list[TrialRecord], history: History, reference: ServingConfig
    ) -> None:
        """Confirm what claims to be cheaper than the winner has turned out to be."""
        while (rival := self._cheaper_claim(queue, history)) is not None:
            queue.remove(rival)
            entrant = self._entrant(rival, reference)
            if self._least_seconds([entrant]) > self._limit.left:
                text = f"{describe(rival.config)} may be cheaper; no time is left to confirm it"
                self._watch(Note(text, True))
                return
            text = f"the winner's confirmed cost rose; confirming {describe(rival.config)} next"
            self._watch(Note(text, True))
            for number in range(1, ROUNDS + 1):
                self._measure_next(entrant, [entrant], number, history)
            self._accept_fewer_rounds()

    def _entrant(
        self, trial: TrialRecord, reference: ServingConfig, requests: int | None = None
    ) -> Entrant:
        requests = requests or _requests_of_a_round(self._context)
        time = round_time(trial, requests, self._context.demand, self._protocols.confirm)
        return Entrant(trial, requests, time, trial.config == reference)

    def _least_seconds(self, entrants: Sequence[Entrant]) -> float:
        return least_seconds(entrants, self._protocols.search, self._scale)

    @property
    def _scale(self) -> float:
        """By which rounds have taken longer than expected, on average."""
        return max(1.0, statistics.mean(self._ratios or [1.0]))

    def _plan(self, entrants: Sequence[Entrant]) -> ConfirmPlan:
        """Return what of the remaining rounds fits into the time left; tell what is shortened."""
        waiting = [
            replace(each, completed=len(self._rounds(each.trial.config)))
            for each in entrants
            if each.trial.config not in self._cut_off
        ]
        plan = plan_confirmation(waiting, self._limit.left, self._protocols.search, self._scale)
        last = self._plans[-1] if self._plans else None
        news = (plan.rounds, plan.left_out, math.isfinite(plan.level_seconds))
        if plan.shortened and (
            last is None or news != (last.rounds, last.left_out, math.isfinite(last.level_seconds))
        ):
            text = f"the confirm phase is shortened to end in time: {plan.shortened}"
            self._watch(Note(text, True))
        self._plans.append(plan)
        return plan

    @property
    def _shortened(self) -> str:
        """What all plans together have shortened, and what was cut off, in words."""
        together = ConfirmPlan(
            min(plan.rounds for plan in self._plans),
            min(plan.level_seconds for plan in self._plans),
            (),
            max(plan.left_out for plan in self._plans),
        )
        cut_off = f"{len(self._cut_off)} of the rounds cut off" if self._cut_off else ""
        return ", ".join(text for text in (together.shortened, cut_off) if text)

    def _measure_next(
        self, entrant: Entrant, entrants: Sequence[Entrant], number: int, history: History
    ) -> None:
        """Measure a round of a configuration, if it is in the plan and not measured already."""
        config = entrant.trial.config
        if len(self._rounds(config)) >= number or config in self._cut_off:
            return
        plan = self._plan(entrants)
        if number > plan.rounds or all(each.trial != entrant.trial for each in plan.entrants):
            return
        others = [each for each in plan.entrants if each.trial != entrant.trial]
        limit = self._limit.earlier(self._least_seconds(others))
        self._measure(entrant, plan, limit, history)

    def _accept_fewer_rounds(self) -> None:
        """Let one round confirm a configuration where the time did not suffice for all."""
        if not self._cut_off and all(plan.rounds == ROUNDS for plan in self._plans):
            return
        for config in dict.fromkeys(record.config for record in self._records.values()):
            rounds = self._rounds(config)
            if len(rounds) < ROUNDS and rounds[-1:]:
                self._keep(replace(rounds[-1], rounds=len(rounds)))

    def _raise_if_most_were_unmeasured(self, finalists: Sequence[TrialRecord]) -> None:
        """Report the finalists that could not be measured; raise where these are most of them."""
        reasons = {r.config: r.reason for r in self._records.values() if r.unmeasured}
        # Those for which the time did not suffice have no reason.
        fewest = min(plan.rounds for plan in self._plans)
        missing = [
            r.config
            for r in finalists
            if len(self._rounds(r.config)) < fewest and r.config in reasons
        ]
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

    def _measure(
        self, entrant: Entrant, plan: ConfirmPlan, limit: TimeLimit, history: History
    ) -> None:
        """Measure one more round of a configuration; try a transient failure once more."""
        trial = entrant.trial
        completed = len(self._rounds(trial.config))
        for attempt in range(1, MAX_ATTEMPTS + 1):
            if len(self._rounds(trial.config)) > completed:
                return
            self._watch(TrialStarted(trial.number, completed + 1, plan.rounds, trial.config))
            try:
                record = self._attempt(entrant, plan, limit, attempt)
            except TimeIsUpError:
                self._cut_off.add(trial.config)
                text = f"a round of {describe(trial.config)} was cut off: its time was up"
                self._watch(Note(text, True))
                return
            self._watch(TrialFinished(record, self._decision(history).best))

    def _attempt(
        self, entrant: Entrant, plan: ConfirmPlan, limit: TimeLimit, attempt: int
    ) -> TrialRecord:
        trial = entrant.trial
        task = CertificationTask(
            measurement_of(trial).load_factor,
            entrant.requests,
            partial(load_factor_per_replica, self._context.demand),
            plan.level_seconds,
            shortest_level(self._protocols.search),
            max(0.0, limit.left / self._scale - entrant.time.fixed),
        )
        started = limit.clock()
        with limit.enforced():
            evaluation = self._evaluator.confirm(trial.config, self._context.slot, task)
        if evaluation.outcome != "failed":
            taken = limit.clock() - started
            self._ratios.append(taken / entrant.time.seconds(plan.level_seconds))
        return self._keep(self._record(trial.config, evaluation, attempt))

    def _record(self, config: ServingConfig, evaluation: Evaluation, attempt: int) -> TrialRecord:
        number = max(self._records, default=-1) + 1
        return confirmation_record(number, config, evaluation, self._context, attempt)

    def _keep(self, record: TrialRecord) -> TrialRecord:
        self._directory.confirmations.write(record)
        self._records[record.number] = record
        return record


def search_reserve(
    history: History,
    reference: ServingConfig,
    context: StudyContext,
    protocols: Protocols,
    run_seconds: float,
) -> float:
    """Return the seconds that a search leaves to the confirm phase, by the best so far."""
    if (best := history.incumbent) is None:
        return 0.0
    requests = _requests_of_a_round(context)
    times = [round_time(best, requests, context.demand, protocols.confirm)] * FINALISTS
    for record in history.records_of(reference)[-1:]:
        if record.outcome == "ok" and record != best:
            own = round_time(record, _BASELINE_REQUESTS, context.demand, protocols.confirm)
            times.append(own)
    return reserved_for_confirm(times, run_seconds, protocols.search)


def _requests_of_a_round(context: StudyContext) -> int:
    """Return the most requests at the capacity of a finalist in one round."""
    return math.ceil(context.confirm_requests / ROUNDS)

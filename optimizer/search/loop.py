"""The search phase: propose, measure, record, tell; until the budget ends or the space does."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import EverythingFailedError
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.drift import DriftRuns
from optimizer.search.evaluator import Evaluator
from optimizer.space_file.reader import Budget
from optimizer.study.context import StudyContext
from optimizer.study.decision import ConfirmedCapacity, decide
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import (
    Note,
    PhaseStarted,
    SearchStatusChanged,
    TrialFinished,
    TrialRecorded,
    TrialStarted,
    Watcher,
)
from optimizer.study.history import History, prune_load_factor, why_most_unmeasured
from optimizer.study.measured_record import measured_record
from optimizer.study.objectives import told_values
from optimizer.study.optuna_study import OptunaStudy, Proposal
from optimizer.study.search_status import (
    Advisor,
    ExpectedCost,
    Explain,
    no_expectation,
    no_search_status,
)

_FAILURES_IN_A_ROW = 5
_REPEATS_IN_A_ROW = 3


@dataclass(frozen=True)
class SearchEnd:
    """Why a search ended.

    Attributes:
        exhausted: whether every valid configuration was measured by then.
        converged: whether the sampler expected no further improvement.
        regret_bound: as in `SearchStatus`.
    """

    reason: str
    exhausted: bool = False
    converged: bool = False
    regret_bound: float | None = None


class SearchLoop:
    """Measures what the study proposes."""

    def __init__(
        self,
        study: OptunaStudy,
        space: SearchSpace,
        evaluator: Evaluator,
        directory: StudyDirectory,
        history: History,
        context: StudyContext,
        watch: Watcher,
    ) -> None:
        self._study = study
        self._space = space
        self._evaluator = evaluator
        self._directory = directory
        self._history = history
        self._context = context
        self._watch = watch
        baseline = space.config(space.baseline)
        self._confirmations = directory.confirmations.read_all().values()
        self._references = DriftRuns(baseline, evaluator, directory, context, watch)

    def run(
        self,
        budget: Budget,
        advise: Advisor = no_search_status,
        spent_seconds: float = 0.0,
        first: Sequence[Position] = (),
        explain: Explain = no_expectation,
    ) -> SearchEnd:
        """Search until the budget ends, every valid point is measured or nothing is left to gain.

        Args:
            advise: asked before every proposal whether anything is left to gain.
            spent_seconds: of the budget's time, before.
            first: points that are measured before the study proposes any, after the baseline.
            explain: asked after every proposal what is expected of it.

        Raises:
            EverythingFailedError: after five failures in a row, the baseline tried again among
                them; or when most configurations could not be measured.
            StorageError: when a record or the study cannot be written.
        """
        ended = self._search(budget, advise, spent_seconds, first, explain)
        self._refuse_if_most_were_unmeasured(least=1)
        return ended

    def _search(
        self,
        budget: Budget,
        advise: Advisor,
        spent_seconds: float,
        first: Sequence[Position],
        explain: Explain,
    ) -> SearchEnd:
        started = time.monotonic() - spent_seconds
        left = budget.wall_clock_seconds - spent_seconds
        self._watch(PhaseStarted("search", budget.trials, left if math.isfinite(left) else None))
        if not self._study.has_queue:
            self._enqueue_undecided([self._space.baseline, *first])
        repeats = 0
        while self._history.trials_spent < budget.trials:
            if time.monotonic() - started >= budget.wall_clock_seconds:
                seconds = f"{budget.wall_clock_seconds:g}"
                return SearchEnd(
                    f"the time budget of {seconds} s is used up", regret_bound=advise().regret_bound
                )
            if repeats >= _REPEATS_IN_A_ROW and not self._enqueue_something_new():
                count = len(self._space)
                reason = f"all {count} valid configurations are measured"
                return SearchEnd(reason, exhausted=True, regret_bound=0.0)
            status = advise()
            if status.stop_reason is not None and not self._study.has_queue:
                return SearchEnd(
                    status.stop_reason, converged=True, regret_bound=status.regret_bound
                )
            self._watch(SearchStatusChanged(status))
            self._references.before_trial(self._history)
            repeats = 0 if self._measure_next(budget, explain) else repeats + 1
        reason = f"the budget of {budget.trials} trials is used up"
        return SearchEnd(reason, regret_bound=advise().regret_bound)

    def _enqueue_undecided(self, positions: Sequence[Position]) -> None:
        for position in dict.fromkeys(positions):
            if self._history.decided(self._space.config(position)) is None:
                self._study.enqueue(position)

    def _measure_next(self, budget: Budget, explain: Explain) -> bool:
        """Measure what the study proposes; False where that is known, and told once more."""
        begun = time.monotonic()
        proposal = self._study.ask()
        config = self._space.config(proposal.position)
        known = self._history.decided(config)
        if known is not None:
            self._study.tell(known, proposal.number)
            return False
        self._trial(proposal, config, budget, begun, explain(proposal.position))
        return True

    def _trial(
        self,
        proposal: Proposal,
        config: ServingConfig,
        budget: Budget,
        begun: float,
        expected: ExpectedCost | None,
    ) -> None:
        measured = self._history.trials_spent
        self._watch(TrialStarted(proposal.number, measured + 1, budget.trials, config, expected))
        record = self._measure(proposal, config, begun)
        self._directory.trials.write(record)
        self._history.add(record)
        self._watch(TrialRecorded(record))
        self._study.tell(record)
        self._watch(TrialFinished(record, self._best()))
        if record.unmeasured and record.attempt == 1:
            self._study.enqueue(proposal.position)
        elif record.unmeasured:
            self._refuse_if_most_were_unmeasured(least=_FAILURES_IN_A_ROW)
        in_a_row = self._history.failures_in_a_row()
        if in_a_row and in_a_row % _FAILURES_IN_A_ROW == 0:
            self._check_baseline(record)

    def _best(self) -> ConfirmedCapacity | None:
        records, context = self._history.records, self._context
        decision = decide(records, self._confirmations, context.price, context.demand, self._space)
        return decision.best

    def _measure(self, proposal: Proposal, config: ServingConfig, begun: float) -> TrialRecord:
        bound = prune_load_factor(self._history.incumbent, self._context.demand)
        if self._context.extra_limits_ms:
            # What is worse within one limit may be the best within another.
            bound = None
        expected = self._history.expected_share(config)
        evaluation = self._evaluator.evaluate(config, self._context.slot, bound, expected)
        attempt = self._history.attempts(config) + 1
        record = measured_record(proposal.number, config, evaluation, self._context, attempt)
        told = told_values(evaluation, self._context)
        return replace(
            record,
            params=proposal.params,
            told_value=told[0] if told else None,
            told_further=told[1:],
            seconds=replace(evaluation.seconds, total=time.monotonic() - begun),
        )

    def _enqueue_something_new(self) -> bool:
        """Queue the unmeasured point nearest to the incumbent; False when there is none."""
        incumbent = self._history.incumbent
        around = self._space.position_of(incumbent.config) if incumbent is not None else None
        decided = set[Position]()
        while fresh := self._space.nearest(around or self._space.baseline, excluding=decided):
            if self._history.decided(self._space.config(fresh)) is None:
                self._study.enqueue(fresh)
                return True
            decided.add(fresh)
        return False

    def _refuse_if_most_were_unmeasured(self, least: int) -> None:
        """Raise EverythingFailedError where so many could not be measured, and most of all."""
        reason = why_most_unmeasured(self._history.records)
        if reason is not None and len(self._history.unmeasured) >= least:
            raise EverythingFailedError(reason)

    def _check_baseline(self, last: TrialRecord) -> None:
        """Try the baseline again: if it fails too, the machine is at fault and not the points."""
        self._watch(
            Note(f"{_FAILURES_IN_A_ROW} failures in a row, trying the baseline again", True)
        )
        config = self._space.config(self._space.baseline)
        evaluation = self._evaluator.evaluate(config, self._context.slot)
        if evaluation.outcome == "failed":
            raise EverythingFailedError(
                f"{_FAILURES_IN_A_ROW} trials in a row failed and so did the baseline; "
                f"last trial: {last.reason}; baseline: {evaluation.reason}"
            )

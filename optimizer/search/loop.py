"""The search phase: propose, measure, record and tell, until the budget or the space is used up."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

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
from optimizer.study.optuna_study import OptunaStudy, Proposal
from optimizer.study.search_status import (
    Advisor,
    ExpectedCost,
    Explain,
    SearchEnd,
    SearchStatus,
)
from optimizer.study.trial_records import proposed_record

_CONSECUTIVE_FAILURES = 5
_CONSECUTIVE_REPEATS = 3


class SearchLoop:
    """Measures the configurations that a study proposes."""

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
        self._baseline = space.config(space.baseline)
        self._confirmations = directory.confirmations.read_all().values()
        self._drift_runs = DriftRuns(self._baseline, evaluator, directory, context, watch)

    def run(
        self,
        budget: Budget,
        advise: Advisor = SearchStatus,
        spent_seconds: float = 0.0,
        first: Sequence[Position] = (),
        explain: Explain = lambda _: None,
    ) -> SearchEnd:
        """Search until the budget ends, every valid point is measured or the sampler converges.

        Args:
            advise: called before every proposal; may end the search.
            spent_seconds: seconds of the budget that were used before.
            first: points to measure after the baseline, before the sampler's own proposals.
            explain: called after every proposal for the expected cost.

        Raises:
            EverythingFailedError: after five consecutive failures and a failed rerun of the
                baseline, or when most configurations could not be measured.
            StorageError: when a record or the study cannot be written.
        """
        end = self._search(budget, advise, spent_seconds, first, explain)
        self._raise_if_most_were_unmeasured(least=1)
        return end

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
            for position in dict.fromkeys([self._space.baseline, *first]):
                if self._history.decided(self._space.config(position)) is None:
                    self._study.enqueue(position)
        repeats = 0
        while self._history.trials_spent < budget.trials:
            if time.monotonic() - started >= budget.wall_clock_seconds:
                reason = f"the time budget of {budget.wall_clock_seconds:g} s is used up"
                return SearchEnd(reason, regret_bound=advise().regret_bound)
            if repeats >= _CONSECUTIVE_REPEATS and not self._enqueue_unmeasured():
                reason = f"all {len(self._space)} valid configurations are measured"
                return SearchEnd(reason, exhausted=True, regret_bound=0.0)
            status = advise()
            if status.stop_reason is not None and not self._study.has_queue:
                return SearchEnd(
                    status.stop_reason, converged=True, regret_bound=status.regret_bound
                )
            self._watch(SearchStatusChanged(status))
            self._drift_runs.before_trial(self._history)
            repeats = 0 if self._measure_next(budget, explain) else repeats + 1
        reason = f"the budget of {budget.trials} trials is used up"
        return SearchEnd(reason, regret_bound=advise().regret_bound)

    def _measure_next(self, budget: Budget, explain: Explain) -> bool:
        """Measure the next proposal; return False where its result is known and told again."""
        started = time.monotonic()
        proposal = self._study.ask()
        config = self._space.config(proposal.position)
        decided = self._history.decided(config)
        if decided is not None:
            self._study.tell(decided, proposal.number)
            return False
        self._run_trial(proposal, config, budget, started, explain(proposal.position))
        return True

    def _run_trial(
        self,
        proposal: Proposal,
        config: ServingConfig,
        budget: Budget,
        started: float,
        expected: ExpectedCost | None,
    ) -> None:
        step = self._history.trials_spent + 1
        self._watch(TrialStarted(proposal.number, step, budget.trials, config, expected))
        record = self._measure(proposal, config, started)
        self._directory.trials.write(record)
        self._history.add(record)
        self._watch(TrialRecorded(record))
        self._study.tell(record)
        self._watch(TrialFinished(record, self._best()))
        if record.unmeasured and record.attempt == 1:
            self._study.enqueue(proposal.position)
        elif record.unmeasured:
            self._raise_if_most_were_unmeasured(least=_CONSECUTIVE_FAILURES)
        failures = self._history.failures_in_a_row()
        if failures and failures % _CONSECUTIVE_FAILURES == 0:
            self._rerun_baseline(record)

    def _best(self) -> ConfirmedCapacity | None:
        records, context = self._history.records, self._context
        decision = decide(records, self._confirmations, context.price, context.demand, self._space)
        return decision.best

    def _measure(self, proposal: Proposal, config: ServingConfig, started: float) -> TrialRecord:
        bound = prune_load_factor(self._history.incumbent, self._context.demand)
        if self._context.extra_limits_ms:
            # A configuration that is worse within one limit may be the best within another.
            bound = None
        expected = self._history.expected_share(config)
        evaluation = self._evaluator.evaluate(config, self._context.slot, bound, expected)
        return proposed_record(
            proposal.number,
            proposal.params,
            config,
            evaluation,
            self._context,
            attempt=self._history.attempts(config) + 1,
            total_seconds=time.monotonic() - started,
        )

    def _enqueue_unmeasured(self) -> bool:
        """Enqueue the unmeasured point nearest to the incumbent; return False for none."""
        incumbent = self._history.incumbent
        center = self._space.position_of(incumbent.config) if incumbent is not None else None
        decided = set[Position]()
        while nearest := self._space.nearest(center or self._space.baseline, excluding=decided):
            if self._history.decided(self._space.config(nearest)) is None:
                self._study.enqueue(nearest)
                return True
            decided.add(nearest)
        return False

    def _raise_if_most_were_unmeasured(self, least: int) -> None:
        """Raise EverythingFailedError where most, and at least `least`, could not be measured."""
        reason = why_most_unmeasured(self._history.records)
        if reason is not None and len(self._history.unmeasured) >= least:
            raise EverythingFailedError(reason)

    def _rerun_baseline(self, last: TrialRecord) -> None:
        """Rerun the baseline after failures; a failure of it too means that the machine is bad."""
        text = f"{_CONSECUTIVE_FAILURES} consecutive trials failed; rerunning the baseline"
        self._watch(Note(text, True))
        evaluation = self._evaluator.evaluate(self._baseline, self._context.slot)
        if evaluation.outcome == "failed":
            raise EverythingFailedError(
                f"{_CONSECUTIVE_FAILURES} consecutive trials failed and so did the baseline; "
                f"last trial: {last.reason}; baseline: {evaluation.reason}"
            )

"""The search phase: proposals go to the idle workers, until the budget or the space is used up.

This process alone owns the sampler, the study and the records. Results are told in the order in
which they come, and proposals take the trials that are running into account.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.model_space import Position
from optimizer.errors import EverythingFailedError, TimeIsUpError
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.drift import DriftRuns
from optimizer.search.running_tasks import LONGEST_WAIT_SECONDS, RunningTasks
from optimizer.search.trial_ledger import RunningTrial, SearchedStudy, TrialLedger
from optimizer.search.worker_pool import Task
from optimizer.space_file.reader import Budget
from optimizer.study.events import (
    EarlierTrials,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    TrialStarted,
)
from optimizer.study.history import prune_load_factor, why_most_unmeasured
from optimizer.study.search_status import Advisor, CalibratedBy, Explain, SearchEnd, SearchStatus

_CONSECUTIVE_FAILURES = 5
_CONSECUTIVE_REPEATS = 3

_RECENT = 10
"""Number of latest trials whose durations predict the next one's."""

_OVERRUN = 0.5
"""A running trial is cut off once it has taken this share of the time of what follows."""


@dataclass(frozen=True)
class SearchTime:
    """The time of a search.

    Attributes:
        limit: of the search and what follows it.
        reserve: returns the seconds that are left to what follows, by the results so far.
    """

    limit: TimeLimit
    reserve: Callable[[], float] = lambda: 0.0

    @property
    def left(self) -> float:
        """Seconds in which trials may be started."""
        return self.limit.left - self.reserve()

    @property
    def end_of_trials(self) -> TimeLimit:
        """The limit by which a running trial is cut off."""
        return self.limit.earlier(_OVERRUN * self.reserve())


@dataclass(frozen=True)
class _Plan:
    """What a search keeps to."""

    budget: Budget
    time: SearchTime
    advise: Advisor
    explain: Explain
    calibrated_by: CalibratedBy


class SearchLoop:
    """Measures the configurations that a study proposes, on as many workers as a pool has.

    The baseline is measured first. Other workers do not wait for it: their first trials have no
    incumbent, which would bound them.

    Args:
        tasks: of the pool's workers; the last calibration runs may be among them.
    """

    def __init__(self, searched: SearchedStudy, tasks: RunningTasks) -> None:
        self._study = searched.study
        self._space = space = searched.space
        self._history = searched.history
        self._context = searched.context
        self._watch = searched.watch
        self._baseline = space.config(space.baseline)
        self._tasks = tasks
        self._ledger = TrialLedger(searched)
        self._drift_runs = DriftRuns(self._baseline, searched.directory, self._context, self._watch)
        self._consecutive_repeats = 0
        self._baseline_reruns = False
        self._status: tuple[tuple[int, int], SearchStatus] | None = None

    def run(
        self,
        budget: Budget,
        advise: Advisor = SearchStatus,
        time: SearchTime | None = None,
        first: Sequence[Position] = (),
        explain: Explain = lambda _: None,
        calibrated_by: CalibratedBy = lambda: 0,
    ) -> SearchEnd:
        """Search until the budget ends, every valid point is measured or the sampler converges.

        Args:
            advise: called before every proposal; may end the search.
            time: of the search; by default that of the budget.
            first: points to measure after the baseline, before the sampler's own proposals.
            explain: called after every proposal for the expected cost.
            calibrated_by: called before every proposal, which waits while it returns None.

        Raises:
            EverythingFailedError: after five consecutive failures and a failed rerun of the
                baseline, or when most configurations could not be measured.
            StorageError: when a record or the study cannot be written.
            WorkersLostError: when no worker is left.
        """
        time = time or SearchTime(TimeLimit.of(budget.wall_clock_seconds))
        left = time.left
        self._watch(EarlierTrials(self._history.records, self._ledger.best))
        self._watch(PhaseStarted("search", budget.trials, left if math.isfinite(left) else None))
        for position in dict.fromkeys([self._space.baseline, *first, *self._due_retries()]):
            if self._history.decided(self._space.config(position)) is None:
                self._study.enqueue_once(position)
        self._consecutive_repeats = self._study.repeats_in_a_row
        end = self._search(_Plan(budget, time, advise, explain, calibrated_by))
        self._raise_if_most_were_unmeasured(least=1)
        return end

    def _search(self, plan: _Plan) -> SearchEnd:
        while True:
            end = None
            if self._tasks.idle and not self._waits(plan):
                end = self._submit_next(plan)
                if end is None:
                    continue
            if end is None or len(self._tasks):
                try:
                    self._tasks.receive(LONGEST_WAIT_SECONDS, plan.time.end_of_trials)
                except TimeIsUpError:
                    return self._cut_off(plan)
            elif end.exhausted or end.converged:
                return end
            else:
                return replace(end, regret_bound=plan.advise().regret_bound)

    def _cut_off(self, plan: _Plan) -> SearchEnd:
        """Leave the running trials to a run that resumes the study."""
        running = len(self._ledger.running)
        text = f"{running} trial{'s' if running != 1 else ''} cut off: the time limit was reached"
        self._watch(Note(text, True))
        return replace(_time_is_up(plan), regret_bound=plan.advise().regret_bound)

    def _due_retries(self) -> list[Position]:
        """Return the points whose first attempt failed just before an earlier run ended."""
        once = (record.config for record in self._history.unmeasured if record.attempt == 1)
        return [position for config in once if (position := self._space.position_of(config))]

    def _waits(self, plan: _Plan) -> bool:
        """Whether no trial may be proposed before a running task has its result."""
        uncalibrated = plan.calibrated_by() is None and not self._study.has_queue
        return uncalibrated or self._waits_for_the_baseline

    @property
    def _waits_for_the_baseline(self) -> bool:
        """Whether so many trials failed that only the baseline can tell whether to go on."""
        failing = self._history.failures_in_a_row() >= _CONSECUTIVE_FAILURES
        return self._baseline_reruns or (failing and self._baseline in self._ledger.running)

    def _submit_next(self, plan: _Plan) -> SearchEnd | None:
        """Submit a trial or a drift run; return why there is nothing to submit.

        The reason may pass with the results of the trials that are running.
        """
        budget, history = plan.budget, self._history
        if history.trials_spent + len(self._ledger.running) >= budget.trials:
            return SearchEnd(f"the budget of {budget.trials} trials is used up")
        if plan.time.left <= self._trial_seconds:
            return _time_is_up(plan)
        if self._consecutive_repeats >= _CONSECUTIVE_REPEATS and not self._has_more():
            reason = f"all {len(self._space)} valid configurations are measured"
            return SearchEnd(reason, exhausted=True, regret_bound=0.0)
        status = self._updated_status(plan.advise)
        if status.stop_reason is not None and not self._study.has_queue:
            return SearchEnd(status.stop_reason, converged=True, regret_bound=status.regret_bound)
        drift_run = self._drift_runs.next_run(history)
        if drift_run is not None:
            self._tasks.submit(drift_run, lambda e, _: self._drift_runs.finish(e, history))
            return None
        trial = self._ledger.propose(plan.time.limit.clock(), plan.calibrated_by())
        self._consecutive_repeats = 0 if trial is not None else self._consecutive_repeats + 1
        if trial is not None:
            self._start(trial, plan)
        return None

    @property
    def _trial_seconds(self) -> float:
        """How long the next trial is likely to take; 0 where nothing tells."""
        seconds = [record.seconds.total for record in self._history.records[-_RECENT:]]
        return statistics.median(seconds or [0.0])

    def _has_more(self) -> bool:
        """Whether a point is left to measure, which is then enqueued unless others are."""
        return self._study.has_queue or self._ledger.enqueue_unmeasured()

    def _updated_status(self, advise: Advisor) -> SearchStatus:
        """Return the sampler's status, asked for once before each proposal."""
        at = self._ledger.proposals, len(self._history.records)
        if self._status is None or self._status[0] != at:
            self._status = at, advise()
            self._watch(SearchStatusChanged(self._status[1]))
        return self._status[1]

    def _start(self, trial: RunningTrial, plan: _Plan) -> None:
        """Submit a trial, with what the results so far say of it."""
        config, number = trial.config, trial.proposal.number
        step = self._history.trials_spent + len(self._ledger.running)
        expected = plan.explain(trial.proposal.position)
        started = TrialStarted(number, step, plan.budget.trials, config, expected)
        clock = plan.time.limit.clock
        bound = prune_load_factor(self._history.incumbent, self._context.demand)
        if self._context.extra_limits_ms:
            # A configuration that is worse within one limit may be the best within another.
            bound = None
        share = self._history.expected_share(config)
        task = Task(number, 1, config, prune_below=bound, expected_share=share)
        self._tasks.submit(
            task,
            lambda evaluation, workers: self._finish(trial, evaluation, workers, clock()),
            lambda worker: self._watch(replace(started, worker=worker)),
        )

    def _finish(
        self, trial: RunningTrial, evaluation: Evaluation, workers: tuple[str, ...], now: float
    ) -> None:
        record = self._ledger.finish(trial, evaluation, workers, now)
        if record.unmeasured and record.attempt > 1:
            self._raise_if_most_were_unmeasured(least=_CONSECUTIVE_FAILURES)
        failures = self._history.failures_in_a_row()
        if failures and failures % _CONSECUTIVE_FAILURES == 0 and not self._waits_for_the_baseline:
            self._rerun_baseline(record)

    def _raise_if_most_were_unmeasured(self, least: int) -> None:
        """Raise EverythingFailedError where most, and at least `least`, could not be measured."""
        reason = why_most_unmeasured(self._history.records)
        if reason is not None and len(self._history.unmeasured) >= least:
            raise EverythingFailedError(reason)

    def _rerun_baseline(self, last: TrialRecord) -> None:
        """Rerun the baseline after failures; a failure of it too means that the machine is bad."""
        text = f"{_CONSECUTIVE_FAILURES} consecutive trials failed; rerunning the baseline"
        self._watch(Note(text, warning=True, trouble=True))
        self._baseline_reruns = True

        def judge(evaluation: Evaluation, _: tuple[str, ...]) -> None:
            self._baseline_reruns = False
            if evaluation.outcome == "failed":
                raise EverythingFailedError(
                    f"{_CONSECUTIVE_FAILURES} consecutive trials failed and so did the baseline; "
                    f"last trial: {last.reason}; baseline: {evaluation.reason}"
                )

        self._tasks.submit(Task(last.number, 1, self._baseline), judge)


def _time_is_up(plan: _Plan) -> SearchEnd:
    return SearchEnd(f"the time budget of {plan.budget.wall_clock_seconds:g} s is used up")

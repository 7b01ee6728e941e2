"""The search phase: propose, measure, record, tell; until the budget ends or the space does."""

from __future__ import annotations

import time
from dataclasses import dataclass

from optimizer.cost import Score, usd_per_million
from optimizer.errors import EverythingFailedError
from optimizer.model_space import Position
from optimizer.search.evaluator import Evaluation, Evaluator
from optimizer.search.events import Note, PhaseStarted, TrialEnded, TrialStarted, Watcher
from optimizer.search.history import History, bound_load_factor, scored
from optimizer.search.optuna_study import OptunaStudy, Proposal
from optimizer.search.reference import ReferenceRuns
from optimizer.search.setting import Setting
from optimizer.search.study_directory import StudyDirectory
from optimizer.search_space import SearchSpace
from optimizer.serving_config import ServingConfig
from optimizer.space_file import Budget
from optimizer.trial_record import Seconds, TrialRecord

_FAILURES_IN_A_ROW = 5
_REPEATS_IN_A_ROW = 3


@dataclass(frozen=True)
class SearchEnd:
    """Why a search ended, and whether every valid configuration was measured by then."""

    reason: str
    exhausted: bool


class SearchLoop:
    """Measures what the study proposes."""

    def __init__(
        self,
        study: OptunaStudy,
        space: SearchSpace,
        evaluator: Evaluator,
        directory: StudyDirectory,
        history: History,
        setting: Setting,
        watch: Watcher,
    ) -> None:
        self._study = study
        self._space = space
        self._evaluator = evaluator
        self._directory = directory
        self._history = history
        self._setting = setting
        self._watch = watch
        baseline = space.config(space.baseline)
        self._references = ReferenceRuns(baseline, evaluator, directory, setting, watch)

    def run(self, budget: Budget) -> SearchEnd:
        """Search until the budget ends or every valid point is measured.

        Raises:
            EverythingFailedError: after five failures in a row, the baseline tried again among
                them.
            StorageError: when a record or the study cannot be written.
        """
        started = time.monotonic()
        self._watch(PhaseStarted("search", budget.trials))
        baseline = self._space.config(self._space.baseline)
        if self._history.decided(baseline) is None and not self._study.has_queue:
            self._study.enqueue(self._space.baseline)
        repeats = 0
        while self._history.measured_here < budget.trials:
            if time.monotonic() - started >= budget.wall_clock_seconds:
                seconds = f"{budget.wall_clock_seconds:g}"
                return SearchEnd(f"the time budget of {seconds} s is used up", False)
            if repeats >= _REPEATS_IN_A_ROW and not self._enqueue_something_new():
                count = len(self._space)
                return SearchEnd(f"all {count} valid configurations are measured", True)
            self._references.before_trial(self._history)
            begun = time.monotonic()
            proposal = self._study.ask()
            config = self._space.config(proposal.position)
            known = self._history.decided(config)
            if known is not None:
                self._study.tell(known, proposal.number)
                repeats += 1
                continue
            repeats = 0
            self._trial(proposal, config, budget, begun)
        return SearchEnd(f"the budget of {budget.trials} trials is used up", False)

    def _trial(
        self, proposal: Proposal, config: ServingConfig, budget: Budget, begun: float
    ) -> None:
        record = self._measure(proposal, config, budget, begun)
        self._directory.trials.write(record)
        self._history.add(record)
        self._study.tell(record)
        self._watch(TrialEnded(record, self._history.incumbent))
        if record.failure is not None and record.failure.transient and record.attempt == 1:
            self._study.enqueue(proposal.position)
        in_a_row = self._history.failures_in_a_row()
        if in_a_row and in_a_row % _FAILURES_IN_A_ROW == 0:
            self._check_baseline(record)

    def _measure(
        self, proposal: Proposal, config: ServingConfig, budget: Budget, begun: float
    ) -> TrialRecord:
        measured = self._history.measured_here
        self._watch(TrialStarted(proposal.number, measured + 1, budget.trials, config))
        bound = bound_load_factor(self._history.incumbent, self._setting.demand)
        expected = self._history.expected_share(config)
        evaluation = self._evaluator.evaluate(config, self._setting.slot, bound, expected)
        return TrialRecord(
            number=proposal.number,
            params=proposal.params,
            config=config,
            outcome=evaluation.outcome,
            reason=evaluation.reason,
            machine=self._setting.machine,
            measurement=evaluation.measurement,
            score=self._score(evaluation),
            told_value=self._told_value(evaluation),
            constraints=self._constraints(evaluation),
            failure=evaluation.failure,
            seconds=Seconds(
                building=evaluation.seconds.building,
                measuring=evaluation.seconds.measuring,
                serving=evaluation.seconds.serving,
                total=time.monotonic() - begun,
            ),
            attempt=self._history.attempts(config) + 1,
        )

    def _score(self, evaluation: Evaluation) -> Score | None:
        if evaluation.outcome != "ok" or evaluation.measurement is None:
            return None
        return scored(evaluation.measurement, self._setting.price, self._setting.demand)

    def _told_value(self, evaluation: Evaluation) -> float | None:
        """Dollars per million at the capacity, or at saturation where no capacity was found."""
        if evaluation.measurement is None or evaluation.excess is None:
            return None
        rate = evaluation.measurement.capacity_per_second
        if evaluation.outcome != "ok":
            rate = evaluation.saturation_per_second or 0.0
        each = self._setting.demand.inferences_per_request
        hourly = self._setting.price.usd_per_hour
        return usd_per_million(hourly, rate, each) if rate > 0 else None

    def _constraints(self, evaluation: Evaluation) -> tuple[tuple[str, float], ...]:
        if evaluation.excess is None:
            return ()
        return tuple((name, evaluation.excess) for name in self._setting.limit_names)

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

    def _check_baseline(self, last: TrialRecord) -> None:
        """Try the baseline again: if it fails too, the machine is at fault and not the points."""
        self._watch(Note(f"{_FAILURES_IN_A_ROW} failures in a row, trying the baseline again"))
        config = self._space.config(self._space.baseline)
        evaluation = self._evaluator.evaluate(config, self._setting.slot)
        if evaluation.outcome == "failed":
            raise EverythingFailedError(
                f"{_FAILURES_IN_A_ROW} trials in a row failed and so did the baseline; "
                f"last trial: {last.reason}; baseline: {evaluation.reason}"
            )

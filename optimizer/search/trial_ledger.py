"""The trials of a study from proposal to tell: each is recorded, and then told once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.context import StudyContext
from optimizer.study.decision import ConfirmedCapacity, RunningDecision
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import TrialFinished, TrialRecorded, Watcher
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy, Proposal
from optimizer.study.trial_records import proposed_record


@dataclass(frozen=True)
class SearchedStudy:
    """A study that is open for a search.

    Attributes:
        space: without what the prepare phase dropped.
        directory: with the records of `history`, to which the search adds.
        watch: receives the events of the search.
    """

    study: OptunaStudy
    space: SearchSpace
    directory: StudyDirectory
    history: History
    context: StudyContext
    watch: Watcher


@dataclass(frozen=True)
class RunningTrial:
    """A trial that was proposed and has no result yet.

    Attributes:
        started: seconds of the caller's clock.
        told_at_proposal: number of records that had been told.
        calibrated_by: see `TrialRecord`.
        repeats: numbers of later proposals of the same configuration.
    """

    proposal: Proposal
    config: ServingConfig
    started: float
    told_at_proposal: int
    calibrated_by: int | None
    repeats: list[int] = field(default_factory=list)


class TrialLedger:
    """Asks a study for trials, and records and tells their results.

    No configuration is measured twice at the same time: a proposal that repeats a running trial is
    told that trial's result, as one that repeats an earlier trial is. The sampler then learns the
    cost of exactly the point that it proposed, on one worker and on many.

    Attributes:
        proposals: number of those that were asked for.
    """

    def __init__(self, searched: SearchedStudy) -> None:
        self._study = searched.study
        self._space = searched.space
        self._trials = searched.directory.trials
        self._history = searched.history
        self._context = context = searched.context
        self._watch = searched.watch
        self._running: dict[ServingConfig, RunningTrial] = {}
        self.proposals = 0
        confirmations = searched.directory.confirmations.read_all().values()
        self._decision = RunningDecision(
            self._history.ok, confirmations, context.price, context.demand, self._space
        )

    @property
    def running(self) -> Mapping[ServingConfig, RunningTrial]:
        """The trials without a result, by their configuration."""
        return self._running

    @property
    def best(self) -> ConfirmedCapacity | None:
        """The recommendation by the records so far."""
        return self._decision.decision.best

    def propose(self, started: float, calibrated_by: int | None = 0) -> RunningTrial | None:
        """Return the next trial; None where its proposal repeats another trial.

        Args:
            calibrated_by: see `TrialRecord`.

        Raises:
            StorageError: when the study cannot be written.
        """
        proposal = self._study.ask()
        self.proposals += 1
        config = self._space.config(proposal.position)
        decided = self._history.decided(config)
        if decided is not None:
            self._study.tell(decided, proposal.number)
            return None
        if config in self._running:
            self._running[config].repeats.append(proposal.number)
            return None
        trial = RunningTrial(proposal, config, started, len(self._history.records), calibrated_by)
        self._running[config] = trial
        return trial

    def finish(
        self, trial: RunningTrial, evaluation: Evaluation, workers: tuple[str, ...], now: float
    ) -> TrialRecord:
        """Record and tell the result of a trial; enqueue its point after a first transient failure.

        Raises:
            StorageError: when the record or the study cannot be written.
        """
        record = proposed_record(
            trial.proposal.number,
            trial.proposal.params,
            trial.config,
            evaluation,
            self._context,
            attempt=self._history.attempts(trial.config) + 1,
            total_seconds=now - trial.started,
        )
        record = replace(
            record,
            workers=workers,
            told_at_proposal=trial.told_at_proposal,
            calibrated_by=trial.calibrated_by,
            told_position=len(self._history.records),
        )
        self._study.require_lease()
        self._trials.write(record)
        kept = self._trials.kept(record)
        self._history.add(kept)
        del self._running[trial.config]
        self._watch(TrialRecorded(record))
        self._study.tell(record)
        for number in trial.repeats:
            self._study.tell(record, number)
        self._decision.add(kept)
        self._watch(TrialFinished(record, self.best))
        if record.unmeasured and record.attempt == 1:
            self._study.enqueue(trial.proposal.position)
        return record

    def enqueue_unmeasured(self) -> bool:
        """Enqueue the nearest point to the incumbent that has no trial; return False for none."""
        incumbent = self._history.incumbent
        center = self._space.position_of(incumbent.config) if incumbent is not None else None
        for point in self._space.by_distance(center or self._space.baseline):
            config = self._space.config(point)
            if config not in self._running and self._history.decided(config) is None:
                self._study.enqueue(point)
                return True
        return False

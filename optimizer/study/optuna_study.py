"""The Optuna study: sampler, ask and tell."""

from __future__ import annotations

import hashlib
import logging
import socket
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, Trial, TrialState, create_trial

from optimizer.configuration.model_space import Position
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace
from optimizer.errors import UsageError, storage_errors
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.optuna_space import OptunaSpace
from optimizer.study.optuna_storage import (
    close_storage,
    journal_errors,
    open_storage,
    repair_journal,
    storage_failures,
)
from optimizer.study.trial_records import COST

_FOLDER = "folder"
"""Attribute of a study in a database: the folder of its records."""

SamplerFactory = Callable[[int], BaseSampler]
"""Makes a sampler from a seed."""


@dataclass(frozen=True)
class Proposal:
    """A point that the study proposes.

    Attributes:
        number: Optuna's trial number.
        params: Optuna's parameters.
        position: the valid point that they stand for.
    """

    number: int
    params: tuple[tuple[str, int | float | str], ...]
    position: Position


class OptunaStudy:
    """Asks for proposals and tells results; a context manager that closes the storage.

    Proposals depend only on the seed, the trial number and the told results: each is made by a new
    sampler whose seed is derived from seed and number.

    Args:
        storage: URL of a database; None for the journal file.
        make_sampler: makes the sampler of a proposal.
        objectives: names of the minimised values, in the order in which they are told.

    Attributes:
        require_lease: called before the study is changed; raises StorageError where another
            coordinator runs it by now, see `CoordinatorLease`.

    Raises:
        StorageError: when the storage cannot be opened.
    """

    def __init__(
        self,
        name: str,
        journal: Path,
        storage: str | None,
        space: SearchSpace,
        make_sampler: SamplerFactory,
        seed: int,
        objectives: Sequence[str] = (COST,),
    ) -> None:
        optuna.logging.set_verbosity(logging.WARNING)
        self._space = space
        self._seed = seed
        self._make_sampler = make_sampler
        self.require_lease: Callable[[], None] = lambda: None
        self._optuna_space = OptunaSpace(space)
        self._open_trials: dict[int, Trial] = {}
        self._interrupted = deque[FrozenTrial]()
        self._next_number = self._waiting = 0
        self._journal = journal if storage is None else None
        self._where = str(journal) if storage is None else "the study storage"
        with storage_failures(self._where):
            if storage is None:
                with storage_errors(journal):
                    repair_journal(journal)
            with journal_errors(self._journal):
                self._storage = open_storage(journal, storage)
                self._study = optuna.create_study(
                    study_name=name,
                    storage=self._storage,
                    directions=["minimize"] * len(objectives),
                    load_if_exists=True,
                )
                self._study.set_metric_names([*objectives])
                # Optuna looks through all trials for a waiting one, before each proposal.
                pop = self._study._pop_waiting_trial_id
                self._study._pop_waiting_trial_id = (  # type: ignore[method-assign]
                    lambda: pop() if self._waiting else None
                )
                # Parameters that are not the space's mean a damaged journal. A run that is killed
                # may leave a trial with some of them.
                for trial in self._study.get_trials(deepcopy=False):
                    if trial.params and trial.state.is_finished():
                        self._optuna_space.combination(trial.params)
                    self._next_number += 1
                    self._waiting += trial.state == TrialState.WAITING

    def __enter__(self) -> OptunaStudy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections to a database."""
        close_storage(self._storage)

    @property
    def has_queue(self) -> bool:
        """Whether an interrupted trial or an enqueued point waits to be proposed."""
        return bool(self._interrupted) or self._waiting > 0

    @property
    def repeats_in_a_row(self) -> int:
        """How many of the latest proposals, by earlier runs too, repeated another trial."""
        finished = [trial for trial in self._trials() if trial.state.is_finished()]
        others = (n for n, t in enumerate(reversed(finished)) if "repeat_of" not in t.user_attrs)
        return next(others, len(finished))

    def enqueue(self, position: Position) -> None:
        """Enqueue a point, which is proposed before the sampler's own."""
        with storage_failures(self._where):
            self._study.enqueue_trial(dict(self._optuna_space.params(position)))
        self._next_number += 1
        self._waiting += 1

    def enqueue_once(self, position: Position) -> None:
        """Enqueue a point, unless a trial without a result has it already."""
        params = dict(self._optuna_space.params(position))
        unfinished = (trial for trial in self._trials() if not trial.state.is_finished())
        if all(t.system_attrs.get("fixed_params", t.params) != params for t in unfinished):
            self.enqueue(position)

    def ask(self) -> Proposal:
        """Return the next proposal; those that an earlier run left come first.

        Raises:
            StorageError: when the study cannot be written.
        """
        self.require_lease()
        with storage_failures(self._where):
            trial = self._continued() if self._interrupted else self._new_trial()
        self._open_trials[trial.number] = trial
        position = self._optuna_space.position(trial.params)
        config = self._space.config(position)
        params = trial.params
        with storage_failures(self._where):
            trial.set_user_attr("config", config.digest)
            for parameter, at in zip(self._space.parameters, position, strict=True):
                value = label(parameter.values[at])
                if len(parameter.values) > 1 and params.get(parameter.key) != value:
                    trial.set_user_attr(parameter.key, value)
        return Proposal(trial.number, self._optuna_space.pairs(params), position)

    def _new_trial(self) -> Trial:
        self._study.sampler = self._make_sampler(_derived_seed(self._seed, self._next_number))
        trial = self._study.ask(self._optuna_space.distributions)
        # An enqueued trial has had its number since then.
        if trial.number < self._next_number:
            self._waiting -= 1
        else:
            self._next_number = trial.number + 1
        return trial

    def _continued(self) -> Trial:
        """Return the first interrupted trial, with the point that it had or would have got."""
        interrupted = self._interrupted.popleft()
        self._study.sampler = self._make_sampler(_derived_seed(self._seed, interrupted.number))
        with journal_errors(self._journal):
            trial = Trial(self._study, interrupted._trial_id)
            for name, distribution in self._optuna_space.distributions.items():
                if name in interrupted.params and not (
                    trial._is_fixed_param(name, distribution)
                    or trial._is_relative_param(name, distribution)
                ):
                    # Drawn again only so that the others are drawn as they would have been.
                    self._study.sampler.sample_independent(
                        self._study, interrupted, name, distribution
                    )
                trial._suggest(name, distribution)
            self._optuna_space.position(trial.params)
        return trial

    def tell(self, record: TrialRecord, number: int | None = None) -> None:
        """Tell the result of a proposal.

        Args:
            number: of the trial that it is told for, where that is not the record's own: a
                repeated proposal is told the result of the first.
        """
        self.require_lease()
        trial_number = record.number if number is None else number
        with storage_failures(self._where):
            if trial_number not in self._open_trials:
                trial_id = self._trials()[trial_number]._trial_id
                self._open_trials[trial_number] = Trial(self._study, trial_id)
            trial = self._open_trials.pop(trial_number)
            trial.set_user_attr("outcome", record.outcome)
            trial.set_user_attr("reason", record.reason)
            if number is not None:
                trial.set_user_attr("repeat_of", record.number)
            if record.told_value is None:
                self._study.tell(trial, state=TrialState.FAIL)
                return
            constraints = trial.constraints  # already set where a run was killed here
            for key, value in record.constraints:
                if key not in constraints:
                    trial.set_constraint(key, value)
            self._study.tell(trial, [record.told_value, *record.told_further])

    def name_constraints(self, names: Sequence[str]) -> None:
        """Store the constraints' names, in the order of their values, for the dashboard."""
        with storage_failures(self._where):
            self._study.set_user_attr("constraints", [*names])

    def attach(self, number: int, file: Path, folder: Path) -> None:
        """Store a copy of a text file in a folder, for the dashboard.

        Args:
            number: of the trial that it belongs to, which has not been told yet.
        """
        # Optuna's artifact stores import boto3 where it is installed, which takes a second.
        from optuna.artifacts import FileSystemArtifactStore, upload_artifact

        with storage_failures(self._where):
            upload_artifact(
                artifact_store=FileSystemArtifactStore(folder),
                file_path=str(file),
                study_or_trial=self._open_trials[number],
                mimetype="text/plain",
            )

    def require_records(self, numbers: Collection[int], folder: Path) -> None:
        """Check that the records of all told trials are in a folder; keep where that is.

        A study in a database may be resumed without its folder, and would measure again what was
        measured.

        Args:
            numbers: of the records in the folder.

        Raises:
            UsageError: where some are not; the message names the folder that has them.
        """
        own = f"{folder} on {socket.gethostname()}"
        with storage_failures(self._where):
            kept = self._study.user_attrs.get(_FOLDER)
        missing = [
            trial.number
            for trial in self._trials()
            if trial.state == TrialState.COMPLETE
            and "repeat_of" not in trial.user_attrs
            and trial.number not in numbers
        ]
        if missing:
            raise UsageError(
                f"study {self._study.study_name} has {len(missing)} trials in {self._where} whose "
                f"records are not in {own}: they are in {kept or 'the folder of another run'}; "
                "copy that folder here, or give --results a file system that the hosts share, or "
                "start another study with --study NEW"
            )
        if kept != own:
            with storage_failures(self._where):
                self._study.set_user_attr(_FOLDER, own)

    def reconcile(self, records: Mapping[int, TrialRecord]) -> None:
        """Update the study from the records, after a killed run or the loss of its storage.

        Recorded results that were not told are told; a trial that was running is proposed again
        under its number, so that all later proposals are those of an undisturbed run; trials that
        the storage lacks are added from their records.
        """
        with journal_errors(self._journal):
            self._reconcile(records)

    def _reconcile(self, records: Mapping[int, TrialRecord]) -> None:
        trials = self._trials()
        for number in range(len(trials), max(records, default=-1) + 1):
            # A missing number was a repeat, which has no record; the other numbers must not change.
            self._add(records.get(number))
        for trial in trials:
            if trial.state != TrialState.RUNNING:
                continue
            if trial.number in records:
                self.tell(records[trial.number])
            else:
                self._interrupted.append(trial)

    def _add(self, record: TrialRecord | None) -> None:
        self._next_number += 1
        position = self._space.position_of(record.config) if record is not None else None
        with storage_failures(self._where):
            if record is None or record.told_value is None or position is None:
                reason = record.reason if record is not None else "a repeated proposal"
                self._study.add_trial(
                    create_trial(state=TrialState.FAIL, user_attrs={"reason": reason})
                )
                return
            self._study.add_trial(
                create_trial(
                    values=[record.told_value, *record.told_further],
                    params=dict(self._optuna_space.params(position)),
                    distributions=self._optuna_space.distributions,
                    constraints=dict(record.constraints),
                    user_attrs={"outcome": record.outcome, "reason": record.reason},
                )
            )

    def _trials(self) -> list[FrozenTrial]:
        with storage_failures(self._where):
            return self._study.get_trials(deepcopy=False)


def _derived_seed(seed: int, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{number}".encode()).digest()[:4], "big")

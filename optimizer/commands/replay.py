"""Search a recorded table: the best configuration that a search finds, and how soon."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optimizer.commands.sampler_choice import Strategies
from optimizer.errors import UsageError
from optimizer.files.owned_names import temporary_folder
from optimizer.files.shipped import shipped
from optimizer.fleet.published_claims import PUBLISHED
from optimizer.load.capacity import CapacityProtocol
from optimizer.machine.blas_threads import one_blas_thread
from optimizer.machine.slots import local_slot
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.lent_calibration import prior_of
from optimizer.search.loop import SearchLoop
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.table import RecordedSpace, RecordedTable
from optimizer.search.recorded.table_file import read_table
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.trial_ledger import SearchedStudy
from optimizer.simulator.calibration import LIGHT_RUNS, calibration_points
from optimizer.simulator.service_prior import ServicePrior
from optimizer.space_file.reader import Budget
from optimizer.study.context import StudyContext, limit_names
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, TrialFinished, Watcher
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.record_store import RecordStore
from optimizer.study.search_status import SearchEnd, SearchStatus
from optimizer.study.trial_records import measured_record


@dataclass(frozen=True)
class ReplayedTrial:
    """A trial of a replayed search.

    Attributes:
        true_share: the capacity by all measurements of its configuration, relative to the best of
            the table; 0 where the trial did not meet the limits.
        seconds: of load tests and model loads from the start of the calibration to its end; those
            that several workers spend at the same time count once.
    """

    record: TrialRecord
    true_share: float
    seconds: float


@dataclass(frozen=True)
class Replay:
    """The search of a table.

    Attributes:
        trials: of the search, in the order of their ends, without the calibration.
        calibration_seconds: of load tests and model loads of the calibration runs, together.
    """

    table: RecordedTable
    trials: tuple[ReplayedTrial, ...]
    calibration_seconds: float
    ended: SearchEnd

    @property
    def best(self) -> ReplayedTrial | None:
        """The cheapest trial by its measurement, None where none met the limits."""
        best = History({t.record.number: t.record for t in self.trials}).incumbent
        return next((trial for trial in self.trials if trial.record is best), None)

    def first_within(self, share: float) -> tuple[int, float] | None:
        """Return (trials, seconds) up to the first true share of at least 1 - share, or None."""
        for count, trial in enumerate(self.trials, 1):
            if trial.true_share >= 1 - share:
                return count, trial.seconds
        return None


def open_table(name: str) -> RecordedTable:
    """Read a table by the path of its file or by its shipped name. Raises UsageError."""
    path, folder = Path(name), shipped("tables")
    if path.exists():
        return read_table(path)
    if (folder / f"{name}.csv").exists():
        return read_table(folder / f"{name}.csv")
    names = ", ".join([*sorted(each.stem for each in folder.glob("*.csv")), PUBLISHED])
    raise UsageError(f"TABLE must be a file or one of {names}; got {name!r}")


@one_blas_thread()
def replay_table(  # noqa: PLR0913 - one argument for each option of the command
    table: RecordedTable,
    sampler: str,
    seed: int,
    trials: int,
    watch: Watcher,
    enough: float | None = None,
    workers: int = 1,
    prior: ServicePrior | None = None,
    regret_percent: float | None = None,
) -> Replay:
    """Search a table as `run` would have searched the machine; no files are left.

    Args:
        trials: budget of the search.
        enough: end the search at the first trial whose true share is at least 1 - enough.
        workers: trials that are measured at the same time, each on a machine like the recorded one.
        prior: service times on other hardware; None without any.
        regret_percent: bound on the regret that ends the search, see `Strategies`.
    """
    space = table.space
    context = recorded_context(space)
    evaluator = RecordedEvaluator(table, np.random.default_rng(seed))
    replayed: list[ReplayedTrial] = []

    def watch_trials(event: Event) -> None:
        watch(event)
        if isinstance(event, TrialFinished):
            share = _true_share(table, event.record)
            replayed.append(ReplayedTrial(event.record, share, pool.seconds))

    def advise() -> SearchStatus:
        if enough is not None and any(trial.true_share >= 1 - enough for trial in replayed):
            return SearchStatus(f"a trial is within {enough:.0%} of the table's best")
        return strategy.advise()

    with temporary_folder() as folder:
        directory, history = StudyDirectory(folder), History({})
        # A recorded table has fewer percentiles than reports show.
        directory.trials = RecordStore(directory.trials.folder, scored=True)
        strategies = Strategies(
            space.search_space,
            space.workload,
            history,
            context,
            CapacityProtocol(),
            seed,
            serves_parts=False,
            prior=prior,
            regret_percent=regret_percent,
        )
        pool = VirtualPool(evaluator, context.slot, workers)
        tasks = RunningTasks(pool, watch_trials)
        strategy = strategies.calibrated(sampler, tasks, directory, watch)
        searched, make_sampler = space.search_space, strategy.make_sampler
        with OptunaStudy(
            space.study, directory.journal, None, searched, make_sampler, seed
        ) as study:
            own = SearchedStudy(study, searched, directory, history, context, watch_trials)
            ended = SearchLoop(own, tasks).run(
                Budget(trials, math.inf), advise, calibrated_by=strategy.calibrated_by
            )
        runs = [record.seconds for record in directory.calibration.read_all().values()]
    calibration_seconds = sum(each.measuring + each.serving for each in runs)
    return Replay(table, tuple(replayed), calibration_seconds, ended)


def lent_by(table: RecordedTable, seed: int) -> ServicePrior | None:
    """Return what the calibration of a table, and its baseline, lend to another table's search."""
    space, context = table.space.search_space, recorded_context(table.space)
    evaluator = RecordedEvaluator(table, np.random.default_rng(seed))
    records = []
    for number, point in enumerate(calibration_points(space)):
        # The baseline is a trial, and the next points have a light load too.
        measure = evaluator.calibrate if 1 <= number <= LIGHT_RUNS else evaluator.saturate
        config = space.config(point)
        record = measured_record(number, config, measure(config, context.slot), context)
        records.append(replace(record, origin=table.space.study))
    return prior_of(records, table.space.workload)


def recorded_context(space: RecordedSpace) -> StudyContext:
    """Return the study context in which a table was recorded."""
    return StudyContext(
        space.price,
        space.demand,
        limit_names(space.workload),
        local_slot(()),
        space.machine.digest,
        confirm_requests=0,
    )


def _true_share(table: RecordedTable, record: TrialRecord) -> float:
    if record.outcome != "ok":
        return 0.0
    return table.true_capacity_of(record.config) / table.best_capacity

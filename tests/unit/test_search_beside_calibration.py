"""On several workers the search begins while the last calibration runs are going on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from optimizer.commands.sampler_choice import Strategies
from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.level_runner import concurrency
from optimizer.search.loop import SearchLoop
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.surrogate.acquisition import AcquisitionPolicy
from optimizer.search.surrogate.learnt_forecast import LearntForecast
from optimizer.search.trial_ledger import SearchedStudy
from optimizer.simulator.calibration import CALIBRATION_RUNS
from optimizer.simulator.network_forecast import forecaster_of
from optimizer.space_file.reader import Budget
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from tests.unit.studies import SETTING, small_space
from tests.unit.tables import WORKLOAD, recorded_table

pytestmark = pytest.mark.slow
SPACE = small_space()
TABLE = recorded_table(SPACE)
RUNS = CALIBRATION_RUNS - 1
"""The baseline is a trial."""


@dataclass(frozen=True)
class Searched:
    """Trials by number and in the order in which they were told, and calibration runs."""

    trials: Sequence[TrialRecord]
    told: Sequence[TrialRecord]
    calibration: Sequence[TrialRecord]


def searched(folder: Path, workers: int, trials: int) -> Searched:
    directory, history = StudyDirectory(folder), History({})
    evaluator = RecordedEvaluator(TABLE, np.random.default_rng(0))
    tasks = RunningTasks(VirtualPool(evaluator, SETTING.slot, workers), lambda _: None)
    strategies = Strategies(SPACE, WORKLOAD, history, SETTING, CapacityProtocol(), seed=0)
    strategy = strategies.calibrated("guided", tasks, directory, lambda _: None)
    with OptunaStudy("beside", directory.journal, None, SPACE, strategy.make_sampler, 0) as study:
        own = SearchedStudy(study, SPACE, directory, history, SETTING, lambda _: None)
        loop = SearchLoop(own, tasks)
        loop.run(Budget(trials, math.inf), calibrated_by=strategy.calibrated_by)
    by_number = sorted(history.records, key=lambda record: record.number)
    return Searched(by_number, history.records, [*directory.calibration.read_all().values()])


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    """A search on eight workers, two more than there are runs."""
    return searched(tmp_path_factory.mktemp("beside"), workers=8, trials=8)


def test_a_worker_that_no_calibration_run_is_left_for_has_a_trial(beside: Searched) -> None:
    baseline, *others = beside.trials
    assert baseline.config == SPACE.config(SPACE.baseline)
    assert baseline.calibrated_by is None
    known = [record.calibrated_by or 0 for record in others]
    assert known == sorted(known)
    assert 0 < known[0] < RUNS == known[-1]


def test_one_worker_ends_the_calibration_before_its_first_trial(tmp_path: Path) -> None:
    trials = searched(tmp_path, workers=1, trials=2).trials
    assert [record.calibrated_by for record in trials] == [RUNS] * 2


def test_the_records_have_the_same_proposed_again(beside: Searched) -> None:
    forecaster = forecaster_of(SPACE, WORKLOAD, concurrency, seed=0)
    early = [record for record in beside.trials[1:] if record.calibrated_by != RUNS]
    for number, record in enumerate([*early, beside.trials[len(early) + 1]], 1):
        known = beside.told[: record.told_at_proposal]
        running = [each for each in beside.trials[:number] if each not in known]
        policy = AcquisitionPolicy(
            SPACE,
            History({each.number: each for each in known}),
            LearntForecast(forecaster, beside.calibration[: record.calibrated_by], WORKLOAD),
            SETTING,
            CapacityProtocol(),
        )
        positions = [SPACE.position_of(each.config) for each in running]
        position = policy.propose([each for each in positions if each is not None])
        assert position is not None
        assert SPACE.config(position) == record.config

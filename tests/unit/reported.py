"""Studies that a report has much to say of, made up, of any size."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from optimizer.analysis.run_summary import LoadRuns, summarise
from optimizer.analysis.summary import StudySummary, write_summary
from optimizer.configuration.search_space import SearchSpace
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Candidate, Price
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import BatchPoint, LoadLevel, Measurement, ServerSplit
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.confirm import Confirmed
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.worker_pool import InlinePool
from optimizer.simulator.calibration import calibration_points
from optimizer.space_file.reader import load_space
from optimizer.study.confidence import CapacityClaim
from optimizer.study.decision import ROUNDS, candidate_of, merged
from optimizer.study.directory import StudyDirectory
from optimizer.study.history import History
from optimizer.study.search_status import SearchEnd
from optimizer.study.searched_space import SearchedSpace
from tests.unit.studies import (
    DEMAND,
    HARDWARE,
    MACHINE,
    PRICE,
    SETTING,
    begin_study,
    capacity_of,
    failed,
    infeasible,
    level,
    ok,
    record_of,
    small_space,
)
from tests.unit.tables import WORKLOAD, recorded_table
from tests.unit.test_summary import FILE, PREPARED

_LOADS = (0.5, 0.8, 0.95, 1.0, 1.05)
"""Shares of the capacity at which there is a level."""


@dataclass(frozen=True)
class Names:
    """What somebody may have called things."""

    price: Price = PRICE
    machine: Machine = MACHINE
    reason: str = "over the limit of 100 ms at 5.0/s"


def studied(
    root: Path,
    trials: int,
    names: Names | None = None,
    space: SearchSpace | None = None,
) -> StudyDirectory:
    """Calibrated, searched, confirmed and summed up; every seventh trial is no success."""
    names, space = names or Names(), space or small_space()
    directory = StudyDirectory(root)
    begin_study(
        directory,
        SearchedSpace(root.name, space, WORKLOAD, names.price, DEMAND),
        names.machine,
    )
    evaluator = RecordedEvaluator(recorded_table(space), np.random.default_rng(0))
    points = [space.config(point) for point in calibration_points(space)]
    pool = InlinePool(evaluator, SETTING.slot)
    tasks = RunningTasks(pool, lambda _: None)
    CalibratePhase(tasks, directory, SETTING, lambda _: None).run(points)
    baseline = space.config(space.baseline)
    configs = [baseline, *(space.config(space.at(n % len(space))) for n in range(1, trials))]
    records = {}
    for number, config in enumerate(configs):
        capacity = capacity_of(config)
        evaluation = _measured(capacity)
        if number % 7 == 6:
            evaluation = replace(infeasible(capacity), reason=names.reason)
        elif number % 7 == 5:
            evaluation = failed(f"{names.reason} {number}")
        records[number] = record_of(number, config, evaluation)
        directory.trials.write(records[number])
    history = History(records)
    assert history.incumbent is not None
    confirmed = _confirm(directory, [history.incumbent, records[0]])
    ended = SearchEnd("the budget is used up", regret_bound=0.03)
    write_summary(directory, _summary(history, confirmed, ended, directory))
    return directory


def _measured(capacity: float) -> Evaluation:
    evaluation = ok(capacity)
    measurement = evaluation.measurement
    assert measurement is not None
    saturated = measurement.levels[0]
    loads = tuple(_level(share * measurement.load_factor, share) for share in _LOADS)
    return replace(evaluation, measurement=replace(measurement, levels=(saturated, *loads)))


def _level(load_factor: float, share: float) -> LoadLevel:
    """Latency that rises towards the capacity, and batches with it."""
    executed = tuple(BatchPoint(size, 100, 4.0 + size) for size in (1, 2, 4, 8))
    split = ServerSplit("bert", 1500, 3.0 * share, 0.2, 9.0, 0.3, executed)
    return replace(level(load_factor, 60.0 * share), server=(split,), replied_ms=14.0)


def _confirm(directory: StudyDirectory, finalists: list[TrialRecord]) -> Confirmed:
    """Each held in both rounds what its trial says."""
    candidates: list[Candidate] = []
    number = 0
    for record in finalists:
        assert record.measurement is not None
        rounds: list[Measurement] = [record.measurement] * ROUNDS
        for measurement in rounds:
            directory.confirmations.write(replace(record, number=number, measurement=measurement))
            number += 1
        candidate = candidate_of(record.config, merged(rounds), PRICE, DEMAND)
        assert candidate is not None
        candidates.append(candidate)
    best, baseline = candidates
    claim = CapacityClaim(baseline.config, 2.5, 2.2, 2.9, 0.9999)
    return Confirmed(baseline, (best,), (claim,))


def _summary(
    history: History, confirmed: Confirmed, ended: SearchEnd, directory: StudyDirectory
) -> StudySummary:
    file = directory.root / "space.yaml"
    file.write_text(FILE)
    space = load_space(file, {PRICE.instance_type: PRICE}, HARDWARE)
    return summarise(space, ended, history, confirmed, LoadRuns.of(directory), PREPARED)

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from optimizer.analysis.study_reading import read_study
from optimizer.configuration.serving_config import describe
from optimizer.errors import StorageError, UsageError
from optimizer.files.atomic import write_json
from optimizer.measurement.cost import Demand
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.decision import Decision
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace
from optimizer.study.trial_records import measured_record
from tests.unit.studies import (
    DEMAND,
    MACHINE,
    PRICE,
    SETTING,
    begin_study,
    failed,
    infeasible,
    ok,
    small_space,
)
from tests.unit.tables import WORKLOAD

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in range(3)]


def begun(root: Path) -> StudyDirectory:
    directory = StudyDirectory(root)
    begin_study(directory, SearchedSpace(root.name, SPACE, WORKLOAD, PRICE, DEMAND))
    return directory


def trial(number: int, which: int, capacity: float) -> TrialRecord:
    return measured_record(number, CONFIGS[which], ok(capacity), SETTING)


@pytest.fixture
def study(tmp_path: Path) -> StudyDirectory:
    """Three configurations; the second claims most."""
    directory = begun(tmp_path / "three")
    for n, capacity in enumerate((100.0, 300.0, 200.0)):
        directory.trials.write(trial(n, n, capacity))
    return directory


def test_what_was_only_measured_is_ranked_by_cost(study: StudyDirectory, tmp_path: Path) -> None:
    found = read_study(tmp_path, "three").decision(PRICE, DEMAND).ranking
    assert [each.candidate.config for each in found] == [CONFIGS[n] for n in (1, 2, 0)]
    assert [each.candidate.score.replicas for each in found] == [2, 3, 5]
    assert not any(each.confirmed for each in found)


def test_confirmed_figures_go_before_what_trials_claim(
    study: StudyDirectory, tmp_path: Path
) -> None:
    for n, capacity in enumerate((190.0, 180.0)):
        study.confirmations.write(trial(n, 2, capacity))
    study.confirmations.write(trial(2, 1, 150.0))
    [only] = read_study(tmp_path, "three").decision(PRICE, DEMAND).ranking
    assert only.confirmed
    assert only.candidate.config == CONFIGS[2], "one round alone confirms nothing"
    assert only.candidate.measurement.capacity_per_second == pytest.approx(180.0)
    assert only.trial.number == 2


def test_another_demand_and_price_are_counted_anew(study: StudyDirectory, tmp_path: Path) -> None:
    dear = replace(PRICE, usd_per_hour=2.0)
    found = read_study(tmp_path, "three").decision(dear, Demand(5000.0, headroom=0.2)).ranking
    best = found[0].candidate
    assert best.score.replicas == 20
    assert best.score.fleet_usd_per_hour == pytest.approx(40.0)
    assert best.measurement.capacity_per_second == pytest.approx(300.0)


def test_a_study_that_came_from_another_machine_is_read_by_its_folder(
    study: StudyDirectory, tmp_path: Path
) -> None:
    found = read_study(tmp_path / "elsewhere", str(study.root))
    assert (found.name, found.machine) == ("three", MACHINE)


def test_what_is_missing_or_damaged_is_named(study: StudyDirectory, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="study 'four' not found"):
        read_study(tmp_path, "four")
    write_json(study.space, {"space": {}, "machine": {"cpu": "x"}})
    with pytest.raises(StorageError, match=r"space\.json: cores: Field required"):
        read_study(tmp_path, "three")


def test_contenders_are_what_was_confirmed_and_then_the_rest(
    study: StudyDirectory, tmp_path: Path
) -> None:
    for n, capacity in enumerate((190.0, 180.0)):
        study.confirmations.write(trial(n, 2, capacity))
    found = read_study(tmp_path, "three").decision(PRICE, DEMAND).contenders
    assert [each.candidate.config for each in found] == [CONFIGS[n] for n in (2, 1, 0)]
    assert [each.confirmed for each in found] == [True, False, False]


def test_the_baseline_is_found_among_others_or_not_at_all(
    study: StudyDirectory, tmp_path: Path
) -> None:
    assert SPACE.config(SPACE.baseline) == CONFIGS[1]
    reading = read_study(tmp_path, "three")
    found = reading.own_decision
    assert found.entry_of(reading.baseline) is found.ranking[0], "it claims most"
    assert Decision(found.ranking[1:]).entry_of(reading.baseline) is None


def test_why_nothing_was_found_is_told_by_the_nearest_miss(tmp_path: Path) -> None:
    directory = begun(tmp_path / "slow")
    assert read_study(tmp_path, "slow").why_nothing_confirmed == "nothing was measured yet"
    directory.trials.write(measured_record(0, CONFIGS[0], failed("it broke"), SETTING))
    reading = read_study(tmp_path, "slow")
    assert reading.why_nothing_confirmed == "none of 1 trials could be measured: it broke"
    for n, p95 in ((1, 300.0), (2, 120.0)):
        directory.trials.write(measured_record(n, CONFIGS[n], infeasible(50, p95), SETTING))
    assert read_study(tmp_path, "slow").why_nothing_confirmed == (
        f"none of 3 trials met the limits; the nearest was {describe(CONFIGS[2])}: "
        "over the limit at the floor"
    )

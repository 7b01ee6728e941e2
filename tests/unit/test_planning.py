from __future__ import annotations

import io
import json
import math
import operator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.cli import main
from optimizer.commands.replay import open_table
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.fleet.planning import fleet_simulation, load_response
from optimizer.fleet.price_list import price_list
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Price
from optimizer.search.calibrate import CalibratePhase
from optimizer.search.recorded.evaluator import RecordedEvaluator
from optimizer.search.running_tasks import RunningTasks
from optimizer.search.worker_pool import InlinePool
from optimizer.simulator.calibration import calibration_points
from optimizer.study.directory import StudyDirectory
from optimizer.study.searched_space import SearchedSpace
from optimizer.study.trial_records import measured_record
from tests.unit.studies import (
    DEMAND,
    MACHINE,
    PRICE,
    SETTING,
    begin_study,
    capacity_of,
    ok,
    small_space,
)
from tests.unit.tables import WORKLOAD, recorded_table

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
SLOW, FAST = 1, -1
"""Configurations of the calibration, by what they are made up to serve."""


@pytest.fixture(autouse=True)
def short_simulations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulate a tenth of the requests: how exact a plan is, test_fleet_plan.py judges."""
    monkeypatch.setattr(load_response, "_REQUESTS", 20_000)
    monkeypatch.setattr(load_response, "_CAPACITY_REQUESTS", 100_000)
    monkeypatch.setattr(fleet_simulation, "_REQUESTS", 200_000)


def searched(
    results: Path,
    name: str,
    price: Price = PRICE,
    limit_ms: float = 100.0,
    machine: Machine = MACHINE,
    *,
    which: int = FAST,
) -> ServingConfig:
    """A study that has been calibrated, and has measured one configuration of its calibration."""
    directory = StudyDirectory(results / name)
    [stream] = WORKLOAD.streams
    limit = replace(stream.limit, latency_ms=limit_ms)
    workload = replace(WORKLOAD, streams=(replace(stream, limit=limit),))
    begin_study(directory, SearchedSpace(name, SPACE, workload, price, DEMAND), machine)
    evaluator = RecordedEvaluator(recorded_table(SPACE), np.random.default_rng(0))
    points = [SPACE.config(point) for point in calibration_points(SPACE)]
    pool = InlinePool(evaluator, SETTING.slot)
    tasks = RunningTasks(pool, lambda _: None)
    CalibratePhase(tasks, directory, SETTING, lambda _: None).run(points)
    config = points[which]
    directory.trials.write(measured_record(0, config, ok(capacity_of(config)), SETTING))
    return config


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    searched(folder, "one")
    return folder


@dataclass(frozen=True)
class Ran:
    exit_code: int
    output: str


def plan(results: Path, *arguments: str) -> Ran:
    """Run the command; lines are joined, wherever the terminal broke them."""
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output), pytest.raises(SystemExit) as ended:
        main(["plan", *arguments, "--results", str(results)])
    assert isinstance(ended.value.code, int)
    return Ran(ended.value.code, " ".join(output.getvalue().split()))


def test_a_plan_is_printed_and_kept(results: Path) -> None:
    ran = plan(results, "one", "--daily", "300:3000@10", "--survive", "instance")
    assert ran.exit_code == 0, ran.output
    data = json.loads((results / "one" / "plan.json").read_text())
    count = data["fleet"]["counts"]["one"]
    assert f"{count} x test.large for 3,000 requests/s" in ran.output
    assert data["survives"] == "instance"
    assert data["surviving"]["instance"]["counts"]["one"] == count
    assert data["surviving"]["nothing"]["counts"]["one"] == count - 1
    assert [way["name"] for way in data["ways"]][:2] == ["constant", "scheduled"]
    assert len(data["ways"][0]["late_share"]) == len(data["demand"]["per_second"]) == 288
    page = (results / "one" / "plan.html").read_text()
    assert "A fleet for daily, 300 to 3000/s, peak at 10 h" in page
    assert "<td>recommended</td>" in page


@pytest.mark.slow
def test_a_fleet_of_a_recorded_pipeline_is_planned(tmp_path: Path) -> None:
    """The simulation of its three steps agrees with the capacity that was measured."""
    table = open_table("text_classification")
    space = table.space
    directory = StudyDirectory(tmp_path / "pipeline")
    begin_study(directory, replace(space, price=PRICE))
    points = [space.search_space.config(p) for p in calibration_points(space.search_space)]
    pool = InlinePool(RecordedEvaluator(table, np.random.default_rng(0)), SETTING.slot)
    tasks = RunningTasks(pool, lambda _: None)
    CalibratePhase(tasks, directory, SETTING, lambda _: None).run(points)
    best, capacity = max(table.true_capacity.items(), key=operator.itemgetter(1))
    trial = measured_record(0, space.search_space.config(best), ok(capacity), SETTING)
    directory.trials.write(trial)
    ran = plan(tmp_path, "pipeline", "--demand", "2000")
    assert ran.exit_code == 0, ran.output
    [instance] = json.loads((tmp_path / "pipeline" / "plan.json").read_text())["instances"]
    assert instance["capacity_per_second"] == pytest.approx(capacity)
    assert 0.8 < instance["service_times_moved_by"] < 1.25


def test_without_a_demand_it_is_the_studys_own(results: Path) -> None:
    ran = plan(results, "one")
    assert ran.exit_code == 0, ran.output
    assert "(constant, 500/s)" in ran.output
    assert "met" in ran.output


def test_too_few_instances_are_no_plan(results: Path) -> None:
    ran = plan(results, "one", "--demand", "90000", "--most", "test.large=2")
    assert ran.exit_code == 1
    assert "No fleet for constant, 90000/s: the available instances do not suffice." in ran.output


def test_two_studies_must_have_been_asked_the_same_and_cost_alike(results: Path) -> None:
    searched(results, "tighter", limit_ms=50.0)
    ran = plan(results, "one", "tighter")
    assert ran.exit_code == 2
    assert "limit.bert: 100.0 in one, 50.0 in tighter" in ran.output
    dear = replace(PRICE, instance_type="other.large", region="us-east-1")
    searched(results, "elsewhere", dear)
    mixed = plan(results, "one", "elsewhere")
    assert mixed.exit_code == 2
    assert "prices of more than one region" in mixed.output
    assert plan(results, "one", "elsewhere", "--accept", "mixed-prices").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["none"], "study 'none' not found"),
        (["one", "one"], "named more than once"),
        (["one", "--daily", "5"], "must be LEAST:MOST or LEAST:MOST@HOUR"),
        (["one", "--daily", "5:1"], "must be LEAST:MOST or LEAST:MOST@HOUR"),
        (["one", "--daily", "1:5@24"], "must be LEAST:MOST or LEAST:MOST@HOUR"),
        (["one", "--daily", "1:5", "--demand", "7"], "give one of --demand, --daily, --trace"),
        (["one", "--peak", "5"], "--peak goes with --trace"),
        (["one", "--trace", "none.csv"], "none.csv: must be readable"),
        (["one", "--most", "x"], "must be INSTANCE_TYPE=COUNT"),
        (["one", "--most", "x=1"], "--most x: must be one of test.large"),
        (["one", "--zones", "1"], "1 is not in the range 2<=x<=100"),
        (["one", "--rate", "spot"], "test.large: no spot price is listed"),
    ],
)
def test_mistakes_are_told_with_exit_code_2(results: Path, arguments: list[str], said: str) -> None:
    ran = plan(results, *arguments)
    assert ran.exit_code == 2
    assert said in ran.output


def test_folders_of_studies_of_one_name_are_told_apart_and_the_first_has_the_plan(
    tmp_path: Path,
) -> None:
    folders = [tmp_path / host / "one" for host in ("a", "b")]
    large, small = (replace(PRICE, instance_type=f"test.{size}") for size in ("large", "small"))
    found = {
        str(folder): searched(folder.parent, "one", price, which=which)
        for folder, price, which in zip(folders, (large, small), (FAST, SLOW), strict=True)
    }
    assert len(set(found.values())) == 2
    results = tmp_path / "results"
    ran = plan(results, *found)
    assert ran.exit_code == 0, ran.output
    assert not results.exists()
    assert (folders[0] / "plan.html").exists()
    data = json.loads((folders[0] / "plan.json").read_text())
    described = {name: f"{describe(config)}; unconfirmed" for name, config in found.items()}
    assert {each["study"]: each["configuration"] for each in data["instances"]} == described
    for name, text in described.items():
        assert f"{name}: {text}" in ran.output


@pytest.mark.slow
def test_studies_of_one_instance_type_are_counted_apart(tmp_path: Path) -> None:
    fast = capacity_of(searched(tmp_path, "fast", which=FAST))
    slow = capacity_of(searched(tmp_path, "slow", which=SLOW))
    assert fast > 1.5 * slow
    ran = plan(tmp_path, "fast", "slow", "--demand", "4000", "--most", "test.large=11")
    assert ran.exit_code == 0, ran.output
    fleet = json.loads((tmp_path / "fast" / "plan.json").read_text())["fleet"]
    count = math.ceil(4000 / fast)
    assert fleet["counts"] == {"fast": count, "slow": 0}
    assert fleet["usd_per_hour"] == pytest.approx(count * PRICE.usd_per_hour)
    assert f"{count} x test.large (fast) for 4,000 requests/s" in ran.output
    # So many can be had of the type, whichever study's configuration they serve.
    few = plan(tmp_path, "fast", "slow", "--demand", "4000", "--most", f"test.large={count - 1}")
    assert few.exit_code == 1
    assert "the available instances do not suffice" in few.output


def test_a_study_in_which_nothing_met_the_limits_has_no_fleet(tmp_path: Path) -> None:
    searched(tmp_path, "empty")
    for record in (tmp_path / "empty" / "trials").glob("*.json"):
        record.unlink()
    ran = plan(tmp_path, "empty")
    assert ran.exit_code == 1
    assert "empty: nothing met the limits" in ran.output


def test_gpus_that_were_not_used_are_taken_to_serve_as_much(tmp_path: Path) -> None:
    [listed] = [e for e in price_list() if e.price.instance_type == "ml.g4dn.12xlarge"]
    t4 = replace(MACHINE, cores=48, memory_gib=186, gpus=("Tesla T4",), driver="580.1")
    searched(tmp_path, "quarter", listed.price, machine=t4)
    whole = replace(t4, gpus=("Tesla T4",) * 4)
    searched(tmp_path, "whole", listed.price, machine=whole)
    ran = plan(tmp_path, "quarter", "--demand", "5000")
    assert ran.exit_code == 0, ran.output
    assert "extrapolated, 1 of 4 GPUs were used" in ran.output
    assert plan(tmp_path, "whole", "--demand", "5000").exit_code == 0
    quarter, all_four = (
        json.loads((tmp_path / name / "plan.json").read_text()) for name in ("quarter", "whole")
    )
    [one], [four] = quarter["instances"], all_four["instances"]
    assert one["capacity_per_second"] == pytest.approx(4 * four["capacity_per_second"])
    count = quarter["fleet"]["counts"]["quarter"]
    assert count < all_four["fleet"]["counts"]["whole"]
    [peak] = quarter["at_the_peak"]
    assert peak["instances"] == count
    assert peak["latency_ms"] <= peak["limit_ms"]

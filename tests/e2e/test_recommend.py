"""Recommendations by what a real server does: a quick search, and an advanced job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.study.directory import StudyDirectory
from tests.e2e import tiny
from tests.e2e.conftest import StartOptimizer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

JOB = {
    "TrafficPattern": {
        "TrafficType": "STAIRS",
        "Stairs": {"DurationInSeconds": 1.5, "NumberOfSteps": 2, "UsersPerStep": 2},
    },
    "StoppingConditions": {
        "ModelLatencyThresholds": [{"Percentile": "P95", "ValueInMilliseconds": 2000}]
    },
    "ResourceLimit": {"MaxNumberOfTests": 2},
}


def search(tmp_path: Path) -> str:
    return f"--search={tiny.write_space(tmp_path, tiny.space())}"


def metrics(file: Path, offer: int = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(file.read_text())["offers"][offer]["metrics"]
    return found


def test_this_machine_is_searched_and_recommended_and_an_advanced_job_goes_on(
    start: StartOptimizer, tmp_path: Path
) -> None:
    recommended_for_a_demand(start, tmp_path)
    loaded_by_a_job(start, tmp_path)


def recommended_for_a_demand(start: StartOptimizer, tmp_path: Path) -> None:
    """Search this machine in passing."""
    file = tmp_path / "recommendation.json"
    options = ("--trials", 2, "--demand", 100_000, "--json", file)
    first = start(search(tmp_path), *options, command="recommend")
    assert first.wait() == 0, first.errors
    assert "Recommended: " in first.output
    found = metrics(file)
    count, capacity = found["InitialInstanceCount"]["value"], found["MaxInvocations"]["value"] / 60
    assert capacity > 0
    assert count >= 100_000 / capacity
    assert found["FleetCostPerHour"]["value"] == pytest.approx(0.36 * count)
    assert found["CostPerInference"]["value"] == pytest.approx(0.36 / 3600 / capacity)
    assert found["MaxInvocations"]["basis"] == "confirmed"
    assert found["CostPerInference"]["worked_out"]
    assert 0 < found["CpuUtilization"]["value"] <= 100
    assert 0 < found["MemoryUtilization"]["value"] <= 100
    assert 0 < found["ModelLatency"]["value"] <= 2000
    assert found["ModelSetupTime"]["value"] > 0
    assert found["GpuPower"] is None
    # From another folder, by the path of what was copied, without a search.
    study = tmp_path / "results" / "tiny"
    again = start(study, "--results", tmp_path / "none", command="recommend")
    assert again.wait() == 0, again.errors
    assert "saturation" not in again.output


def loaded_by_a_job(start: StartOptimizer, tmp_path: Path) -> None:
    """Load the best configurations of the search, in three runs of the same job."""
    job, file = tmp_path / "job.json", tmp_path / "advanced.json"
    options = ("--trials", 2, "--job", job, "--json", file)
    # Two tests take 6 s, and time to serve their models.
    job.write_text(json.dumps({**JOB, "JobDurationInSeconds": 7}))
    short = start(search(tmp_path), *options, command="recommend")
    assert short.wait() in (0, 1), short.errors
    assert "JobDurationInSeconds is over: " in short.output
    assert " of 2 tests are left; rerun the command to resume" in short.output
    job.write_text(json.dumps(JOB))
    first = start(search(tmp_path), *options, command="recommend")
    assert first.wait() == 0, first.errors
    records = StudyDirectory(tmp_path / "results" / "tiny" / "advanced").trials.read_all()
    assert len(records) == 2
    for record in records.values():
        assert record.measurement is not None
        [level] = record.measurement.levels
        assert (level.kind, level.ended) == ("user_load", "its time was up")
        assert level.seconds == pytest.approx(3.0, abs=0.1)
    offers = json.loads(file.read_text())["offers"]
    assert len(offers) == 2
    for n in range(2):
        found = metrics(file, n)
        assert found["MaxInvocations"]["value"] > 0
        assert found["MaxInvocations"]["basis"] == "measured"
        assert 0 < found["ModelLatency"]["value"] <= 2000
        assert 0 < found["CpuUtilization"]["value"] <= 100
    assert "means over the whole load" in first.output
    second = start(search(tmp_path), *options, command="recommend")
    assert second.wait() == 0, second.errors
    assert "served" not in second.output, "what was measured is not measured again"
    ranked = start("tiny", "--advanced", command="recommend")
    assert ranked.wait() == 0, ranked.errors
    assert "Recommended: " in ranked.output
    job.write_text(json.dumps({**JOB, "ThinkTimeInSeconds": 0.1}))
    other = start(search(tmp_path), *options, command="recommend")
    assert other.wait() == 2
    assert "space.job.think_seconds: was 0, is 0.1" in other.errors

"""User loads as SageMaker Inference Recommender's jobs spell them."""

import json
from pathlib import Path
from typing import Any

import pytest

from optimizer.errors import UsageError
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.load.user_load_file import LoadTestJob, read_job, read_user_load
from optimizer.workload.streams import LatencyLimit

PHASE = {"InitialNumberOfUsers": 2, "SpawnRate": 2, "DurationInSeconds": 1500}
STAIRS = {"DurationInSeconds": 60, "NumberOfSteps": 3, "UsersPerStep": 4}


def written(folder: Path, content: Any) -> Path:
    path = folder / "users.json"
    path.write_text(json.dumps(content))
    return path


def test_the_published_ramp(tmp_path: Path) -> None:
    load, conditions = read_user_load(
        written(
            tmp_path,
            {
                "TrafficPattern": {"TrafficType": "PHASES", "Phases": [PHASE]},
                "StoppingConditions": {
                    "MaxInvocations": 30000,
                    "ModelLatencyThresholds": [{"Percentile": "P95", "ValueInMilliseconds": 500}],
                    "FlatInvocations": "Stop",
                },
            },
        )
    )
    assert load == UserLoad((Phase(2, 2, 1500),))
    assert conditions == StoppingConditions(30000, (LatencyLimit(95, 500),), "Stop")


def test_stairs_of_users_who_think(tmp_path: Path) -> None:
    pattern = {"TrafficType": "STAIRS", "Stairs": STAIRS}
    path = written(tmp_path, {"TrafficPattern": pattern, "ThinkTimeInSeconds": 1.5})
    load, conditions = read_user_load(path)
    assert [phase.initial_number_of_users for phase in load.phases] == [4, 8, 12]
    assert load.seconds == 180
    assert load.think_seconds == 1.5
    assert conditions == StoppingConditions()


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ({}, ["TrafficPattern: Field required"]),
        (
            {"TrafficPattern": {"TrafficType": "STAIRS", "Phases": [PHASE]}},
            ["TrafficPattern: TrafficType STAIRS must have only Stairs, got ['Phases']"],
        ),
        (
            {
                "TrafficPattern": {
                    "TrafficType": "PHASES",
                    "Phases": [{**PHASE, "InitialNumberOfUsers": 0, "SpawnRate": 0}],
                }
            },
            ["TrafficPattern: at least one phase must have users"],
        ),
        (
            {
                "TrafficPattern": {"TrafficType": "RAMP", "Phases": [PHASE]},
                "StoppingConditions": {"MaxInvocation": 1, "FlatInvocations": "Maybe"},
            },
            [
                "TrafficPattern.TrafficType: must be 'PHASES' or 'STAIRS'",
                "StoppingConditions.FlatInvocations: must be 'Continue' or 'Stop'",
                "StoppingConditions.MaxInvocation: Extra inputs are not permitted",
            ],
        ),
    ],
)
def test_every_mistake_at_once(tmp_path: Path, content: Any, lines: list[str]) -> None:
    path = written(tmp_path, content)
    with pytest.raises(UsageError) as caught:
        read_user_load(path)
    first, *found = str(caught.value).splitlines()
    assert first == f"{path} is not a valid user load:"
    assert [line.strip() for line in found] == lines


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere\.json must be readable \(No such file"):
        read_user_load(tmp_path / "nowhere.json")


JOB = {
    "TrafficPattern": {"TrafficType": "STAIRS", "Stairs": STAIRS},
    "StoppingConditions": {
        "ModelLatencyThresholds": [{"Percentile": "P95", "ValueInMilliseconds": 500}]
    },
}


def test_a_job_says_how_many_tests_it_has_and_how_long_it_may_take(tmp_path: Path) -> None:
    load = UserLoad((Phase(4, 0.0, 60), Phase(8, 0.0, 60), Phase(12, 0.0, 60)))
    conditions = StoppingConditions(None, (LatencyLimit(95, 500),))
    assert read_job(written(tmp_path, JOB)) == LoadTestJob(load, conditions, 3, None)
    limits = {"MaxNumberOfTests": 5, "MaxParallelOfTests": 1}
    given = {**JOB, "ResourceLimit": limits, "JobDurationInSeconds": 901}
    assert read_job(written(tmp_path, given)) == LoadTestJob(load, conditions, 5, 901)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"ResourceLimit": {"MaxParallelOfTests": 2}},
            "ResourceLimit: MaxParallelOfTests must be 1: a machine measures one configuration at "
            "a time; got 2",
        ),
        (
            {"JobDurationInSeconds": 540},
            "file: JobDurationInSeconds must be above the longest time of the tests, 3 x 180 s; "
            "got 540",
        ),
        (
            {
                "StoppingConditions": {
                    "ModelLatencyThresholds": [{"Percentile": "P99", "ValueInMilliseconds": 500}]
                }
            },
            "file: Percentile of a job's ModelLatencyThresholds must be P95; got P99",
        ),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(tmp_path: Path, change: Any, line: str) -> None:
    path = written(tmp_path, {**JOB, **change})
    with pytest.raises(UsageError) as caught:
        read_job(path)
    assert str(caught.value).splitlines() == [f"{path} is not a valid job:", f"  {line}"]


def test_users_that_are_measured_alone_have_no_resource_limit(tmp_path: Path) -> None:
    path = written(tmp_path, {**JOB, "ResourceLimit": {"MaxNumberOfTests": 2}})
    with pytest.raises(UsageError, match="ResourceLimit: Extra inputs are not permitted"):
        read_user_load(path)


@pytest.mark.parametrize(
    ("pattern", "rule"),
    [
        (
            {"TrafficType": "STAIRS", "Stairs": {"DurationInSeconds": 1, "NumberOfSteps": 10**9,
                                                 "UsersPerStep": 1}},
            "NumberOfSteps: must be less than or equal to 1000",
        ),
        (
            {"TrafficType": "STAIRS", "Stairs": {"DurationInSeconds": 1, "NumberOfSteps": 1000,
                                                 "UsersPerStep": 1000}},
            "at most 10,000 users at once, got 1,000,000",
        ),
        (
            {"TrafficType": "PHASES", "Phases": [{"InitialNumberOfUsers": 1, "SpawnRate": 1e6,
                                                  "DurationInSeconds": 86400}]},
            "at most 10,000 users at once, got 1,440,000,000",
        ),
        (
            {"TrafficType": "STAIRS", "Stairs": {"DurationInSeconds": 604800, "NumberOfSteps": 9,
                                                 "UsersPerStep": 1}},
            "must last at most 604,800 s",
        ),
    ],
)  # fmt: skip
def test_a_load_that_no_machine_can_be_is_refused_at_once(
    tmp_path: Path, pattern: dict[str, object], rule: str
) -> None:
    path = tmp_path / "users.json"
    path.write_text(json.dumps({"TrafficPattern": pattern}))
    with pytest.raises(UsageError, match=rule):
        read_user_load(path)

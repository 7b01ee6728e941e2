"""The published ramp of users, on levels that are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.errors import LoadTestFailure
from optimizer.load.level_plan import LevelPlan
from optimizer.load.ramp import PUBLISHED_RAMP, find_by_ramp, find_in_user_load, largest_rate_within
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.measurement.level import LoadLevel, Slice
from optimizer.workload.streams import LatencyLimit
from tests.unit.simulated_server import workload
from tests.unit.studies import level

WORK = workload(60)


def ramped(*parts: tuple[int, float | None]) -> LoadLevel:
    """A load of 100 s in equal parts: what was answered in each, and its p95."""
    slices = tuple(Slice(completed, p95_ms) for completed, p95_ms in parts)
    return replace(level(0.1, kind="user_load"), seconds=100.0, slices=slices)


def test_the_ramp_is_that_of_the_published_job() -> None:
    users = PUBLISHED_RAMP.users()
    assert (users.counts[0], users.counts[-1]) == (2, 2 + 49)
    assert PUBLISHED_RAMP.seconds == 25 * 60


def test_the_most_within_the_limit_is_found() -> None:
    found = largest_rate_within(ramped((100, 20.0), (300, 40.0), (500, 59.0), (520, 75.0)), 60.0)
    assert found == (500 / 25, 59.0)


def test_where_nothing_is_within_the_limit_the_fastest_part_is_told() -> None:
    assert largest_rate_within(ramped((0, None), (300, 90.0), (500, 120.0)), 60.0) == (
        300 / (100 / 3),
        90.0,
    )


def find(*parts: tuple[int, float | None]) -> tuple[str, float]:
    asked: list[LevelPlan] = []

    def run(plan: LevelPlan) -> LoadLevel:
        asked.append(plan)
        return ramped(*parts)

    result = find_by_ramp(run, WORK, 30.0)
    [plan] = asked
    assert isinstance(plan.load, UserLoad)
    assert isinstance(plan.stop, StoppingConditions)
    assert plan.stop.max_invocations == 500 * 60
    assert plan.stop.model_latency_thresholds[0].latency_ms == 60
    return result.outcome, result.valid_measurement.capacity_per_second


def test_what_the_ramp_finds_is_a_capacity() -> None:
    verdict, per_second = find((100, 20.0), (500, 59.0))
    assert verdict == "ok"
    assert per_second == pytest.approx(10.0)


def test_a_server_that_misses_the_limit_from_the_first_user_on_is_infeasible() -> None:
    assert find((100, 61.0), (500, 90.0)) == ("infeasible", 0.0)


def test_a_server_that_answers_nothing_has_failed() -> None:
    dead = ramped((0, None))
    stream = replace(dead.streams[0], sent=5, completed=0, errors=5, first_error="refused")
    with pytest.raises(LoadTestFailure, match="refused"):
        find_by_ramp(lambda _: replace(dead, streams=(stream,)), WORK, 30.0)


def test_a_job_is_judged_by_the_shortest_of_its_own_thresholds() -> None:
    load = UserLoad((Phase(4, 0.0, 30.0),), think_seconds=0.5)
    limits = (LatencyLimit(95, 80.0), LatencyLimit(95, 50.0))
    conditions = StoppingConditions(None, limits, "Stop")
    asked: list[LevelPlan] = []

    def run(plan: LevelPlan) -> LoadLevel:
        asked.append(plan)
        return ramped((100, 20.0), (500, 49.0), (700, 55.0))

    result = find_in_user_load(run, WORK, load, conditions, 5.0)
    assert result.valid_measurement.capacity_per_second == pytest.approx(500 / (100 / 3))
    assert result.limit_overshoot == pytest.approx(49 / 50 - 1)
    [plan] = asked
    assert (plan.load, plan.stop, plan.seconds) == (load, conditions, 30.0)

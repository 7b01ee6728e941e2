"""Levels in which the load generator fell behind: they say nothing of the server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from optimizer.errors import VoidLevelFailure
from optimizer.load.capacity import RunLevel, find_capacity
from optimizer.load.certification import CertificationTask, certify_load
from optimizer.load.curve import find_capacity_and_service, find_latencies, find_service
from optimizer.load.level_plan import LevelPlan
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import why_missed, why_void
from optimizer.measurement.other_limits import share_within
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.test_load_capacity import PROTOCOL

PATIENT = replace(PROTOCOL, load_seconds=20.0)
"""Time for some void levels beside those that count."""

LAG_MS = 31.8


def lagging(server: SimulatedServer, at: Callable[[float], bool] = lambda load: True) -> RunLevel:
    """A server whose load generator falls behind at the load factors that `at` names."""

    def run(plan: LevelPlan) -> LoadLevel:
        level = server(plan)
        late = level.kind == "open_loop" and at(level.load_factor)
        lag_ms = LAG_MS if late else 0.1
        client = replace(level.client, lag_ms=lag_ms, longest_lag_ms=plan.longest_lag_ms)
        return replace(level, client=client)

    return run


def tight() -> SimulatedServer:
    return SimulatedServer(workload(60), instances=2, batch_seconds=0.020)


def find(run: RunLevel, server: SimulatedServer) -> Evaluation:
    return find_capacity(run, server.work, PATIENT, 64)


def test_where_every_level_is_void_the_configuration_could_not_be_measured() -> None:
    server = tight()
    said = r"^could not be measured: at \d+\.\d/s, the load generator fell 31\.8 ms behind"
    with pytest.raises(VoidLevelFailure, match=said) as raised:
        find(lagging(server), server)
    assert raised.value.transient
    assert len(server.plans) <= 6, "saturation, and a few loads below it"


def test_a_void_level_at_the_floor_is_no_missed_limit() -> None:
    server = SimulatedServer(workload(8))
    with pytest.raises(VoidLevelFailure, match="could not be measured: at"):
        find(lagging(server, lambda load: load < 0.1), server)


def test_loads_that_could_not_be_sent_are_not_certified_and_the_reason_is_told() -> None:
    server = tight()
    rate = server.saturation_per_second / server.work.demand_per_second
    result = find(lagging(server, lambda load: load > 0.6 * rate), server)
    assert result.outcome == "ok"
    measurement = result.valid_measurement
    held = max(x.load_factor for x in measurement.open_loop if why_missed(x) is None)
    assert measurement.load_factor == held <= 0.6 * rate
    assert measurement.load_factor_high is not None
    assert measurement.load_factor_high >= 0.95 * rate, "nothing was shown to be too much"
    assert "more could not be measured: at" in measurement.ended
    assert "the load generator fell 31.8 ms behind" in measurement.ended
    assert all(level.client.kept_up for level in measurement.open_loop)
    assert any(why_void(level) for level in measurement.levels)


def test_a_capacity_between_a_load_that_was_held_and_one_that_was_not_needs_no_void_level() -> None:
    server = SimulatedServer(workload(45), instances=1, batch_seconds=0.02)
    quiet = find(server, server).valid_measurement
    held = [x.load_factor for x in quiet.open_loop if why_missed(x) is None]
    missed = [x.load_factor for x in quiet.open_loop if why_missed(x) is not None]
    assert held
    assert missed, "both sides of the limit were seen"
    again = SimulatedServer(workload(45), instances=1, batch_seconds=0.02)
    between = (max(x for x in held if x < min(missed)) + min(missed)) / 2
    found = find(
        lagging(again, lambda load: abs(load / between - 1) < 1e-3), again
    ).valid_measurement
    assert found.load_factor == pytest.approx(quiet.load_factor, rel=0.1)
    assert "could not be measured" not in found.ended


def test_a_load_that_was_held_outlasts_any_number_of_void_levels() -> None:
    server = tight()
    rate = server.saturation_per_second / server.work.demand_per_second
    calls: list[float] = []

    def at(load: float) -> bool:
        calls.append(load)
        return len(calls) != 2

    measurement = find(lagging(server, at), server).valid_measurement
    assert measurement.load_factor == calls[1] < 0.95 * rate
    assert "more could not be measured" in measurement.ended


def test_a_void_level_far_above_the_capacity_changes_nothing() -> None:
    def capacity(at: Callable[[float], bool]) -> float:
        server = SimulatedServer(workload(45), instances=1, batch_seconds=0.02)
        server.rng = np.random.default_rng(3)
        return find(lagging(server, at), server).valid_measurement.capacity_per_second

    quiet = capacity(lambda load: False)
    assert capacity(lambda load: load > 0.09) == pytest.approx(quiet, rel=0.2)


def test_a_load_is_held_below_one_that_could_not_be_sent() -> None:
    server = SimulatedServer(workload(500))
    task = CertificationTask(0.3, requests=100, at_demand=lambda load: load / 2)
    run = lagging(server, lambda load: load > 0.28)
    measurement = certify_load(run, server.work, PROTOCOL, 16, task).valid_measurement
    assert measurement.load_factor == pytest.approx(0.93 * 0.3)
    assert measurement.load_factor_high is None, "nothing was shown to be too much"
    assert "certified 93% of its capacity; at" in measurement.ended
    assert "the load generator fell 31.8 ms behind" in measurement.ended
    assert measurement.level_at_capacity is not None
    assert measurement.level_at_capacity.client.kept_up


def test_a_load_that_could_never_be_sent_is_not_missed() -> None:
    server = SimulatedServer(workload(500))
    task = CertificationTask(0.3, requests=100, at_demand=lambda load: load / 2)
    with pytest.raises(VoidLevelFailure, match=r"could not be measured.*31\.8 ms behind"):
        certify_load(lagging(server), server.work, PROTOCOL, 16, task)


def test_nothing_is_learnt_from_a_light_load_that_is_void() -> None:
    server = tight()
    result = find_service(lagging(server), server.work, PROTOCOL, 16)
    assert [level.kind for level in result.valid_measurement.levels] == ["saturation"]
    sent = find_service(server, server.work, PROTOCOL, 16)
    assert [level.kind for level in sent.valid_measurement.levels] == ["saturation", "open_loop"]


@pytest.mark.parametrize("find_all", [find_capacity_and_service, find_latencies])
def test_a_recorded_point_has_all_of_its_levels(
    find_all: Callable[..., Evaluation],
) -> None:
    server = SimulatedServer(workload(500))
    rate = server.saturation_per_second / server.work.demand_per_second
    light = lagging(server, lambda load: load < 0.9 * rate)
    with pytest.raises(VoidLevelFailure, match="could not be measured"):
        find_all(light, server.work, PROTOCOL, 16)


def test_void_levels_say_nothing_of_another_limit() -> None:
    server = tight()
    result = find(server, server)
    levels = result.valid_measurement.levels
    saturation = result.valid_measurement.levels[0].load_factor
    late = replace(levels[-1].client, lag_ms=LAG_MS, longest_lag_ms=3.0)
    void = replace(levels[-1], client=late, load_factor=0.05 * saturation)
    assert share_within([*levels, void], saturation, 60) == share_within(levels, saturation, 60)
    assert share_within([void], saturation, 60) is None

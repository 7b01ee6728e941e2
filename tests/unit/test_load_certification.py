"""Certification of a capacity, on the simulated server."""

from dataclasses import replace

import pytest

from optimizer.load.certification import CertificationTask, certify_load
from optimizer.load.level_plan import ClosedLoop, OpenLoop
from optimizer.measurement.evaluation import Evaluation
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.test_load_capacity import PROTOCOL, SERVERS


def certify(server: SimulatedServer, capacity: float) -> Evaluation:
    task = CertificationTask(capacity, requests=500, at_demand=lambda load: load / 2)
    return certify_load(server, server.work, PROTOCOL, 16, task)


def test_a_load_within_the_capacity_is_certified() -> None:
    server = replace(SERVERS["M/D/4, tight"], plans=[])
    result = certify(server, 0.7)
    assert result.outcome == "ok"
    assert result.valid_measurement.load_factor == 0.7
    loads = [plan.load for plan in server.plans]
    assert loads == [ClosedLoop(16), OpenLoop(0.7), OpenLoop(0.35)]
    assert result.limit_overshoot == result.valid_measurement.levels[1].limit_overshoot
    assert result.valid_measurement.levels[1].streams[0].sent >= 500


def test_a_level_whose_verdict_is_certain_needs_no_more_requests() -> None:
    server = SimulatedServer(workload(5000, 5.0), instances=1, batch_seconds=0.1)
    task = CertificationTask(1.0, requests=5000, at_demand=lambda load: load)
    level = certify_load(server, server.work, PROTOCOL, 16, task).valid_measurement.levels[1]
    assert level.verdict == "feasible"
    assert level.seconds >= PROTOCOL.check_seconds
    assert level.streams[0].sent < 1000


def test_a_load_just_above_the_capacity_steps_down() -> None:
    server = replace(SERVERS["M/D/4, tight"], plans=[])
    result = certify(server, 0.98)
    assert result.outcome == "ok"
    assert result.valid_measurement.load_factor < 0.98
    assert result.valid_measurement.load_factor_high == pytest.approx(
        result.valid_measurement.levels[-3].load_factor
    )
    assert result.valid_measurement.load_factor_low == result.valid_measurement.load_factor


def test_a_limit_that_is_missed_all_the_way_down_is_infeasible() -> None:
    result = certify(SimulatedServer(workload(8)), 0.3)
    assert result.outcome == "infeasible"
    assert result.valid_measurement.load_factor == 0

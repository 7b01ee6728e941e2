"""Levels beside those of the search for the capacity, on a simulated server."""

from itertools import pairwise

import pytest

from optimizer.load.capacity import CapacityProtocol
from optimizer.load.curve import (
    find_capacity_and_service,
    find_curve,
    find_latencies,
    find_service,
)
from tests.unit.simulated_server import SimulatedServer, workload


def test_the_curve_goes_from_light_load_to_saturation_and_turns_up() -> None:
    server = SimulatedServer(workload(60), instances=2, batch_seconds=0.01)
    result = find_curve(server, server.work, CapacityProtocol(), 64)
    assert result.outcome == "ok"
    curve = result.valid_measurement.levels[-8:]
    rates = [level.load_factor * 500 for level in curve]
    assert rates == pytest.approx([20, 60, 100, 140, 160, 180, 190, 200], rel=0.05)
    p95 = [level.streams[0].latency_ms(95) for level in curve]
    assert p95[0] < 1.6 * 10
    assert p95[-1] > 4 * p95[0]
    assert all(later > 0.8 * earlier for earlier, later in pairwise(p95))
    assert all(level.ended == "its time was up" for level in curve), "they tell more when whole"


PROTOCOL = CapacityProtocol()


def test_service_times_take_saturation_and_half_of_it() -> None:
    server = SimulatedServer(workload(60), instances=2, batch_seconds=0.01)
    result = find_service(server, server.work, PROTOCOL, 64)
    assert result.outcome == "bounded"
    saturated, light = result.valid_measurement.levels
    assert (saturated.kind, light.kind) == ("saturation", "open_loop")
    assert light.load_factor == pytest.approx(0.5 * saturated.load_factor)
    # A level counts from where it has settled.
    assert light.seconds == pytest.approx(0.5 * PROTOCOL.check_seconds, rel=0.3)
    assert light.ended == "its time was up"


def test_what_is_recorded_of_a_point_ends_with_the_light_level() -> None:
    server = SimulatedServer(workload(60), instances=2, batch_seconds=0.01)
    result = find_capacity_and_service(server, server.work, PROTOCOL, 64)
    assert result.outcome == "ok"
    assert result.valid_measurement.load_factor > 0
    first, *_, light = result.valid_measurement.levels
    assert light.load_factor == pytest.approx(0.5 * first.load_factor)


def test_latencies_are_told_by_levels_that_are_longer_than_checks() -> None:
    server = SimulatedServer(workload(60), instances=2, batch_seconds=0.01)
    result = find_latencies(server, server.work, PROTOCOL, 64)
    capacity = result.valid_measurement.load_factor
    for share, level in zip((0.5, 0.8), result.valid_measurement.levels[-2:], strict=True):
        assert level.load_factor == pytest.approx(share * capacity)
        assert level.seconds == pytest.approx(4 * PROTOCOL.check_seconds, rel=0.3)

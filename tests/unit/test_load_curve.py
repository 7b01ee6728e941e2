"""The load-latency curve of a simulated server."""

from itertools import pairwise

import pytest

from optimizer.load.capacity import CapacityProtocol
from optimizer.load.curve import find_curve
from tests.unit.simulated_server import SimulatedServer, workload


def test_the_curve_goes_from_light_load_to_saturation_and_turns_up() -> None:
    server = SimulatedServer(workload(60), instances=2, batch_seconds=0.01)
    result = find_curve(server, server.work, CapacityProtocol(), 64)
    assert result.verdict == "ok"
    curve = result.measurement.levels[-8:]
    rates = [level.load_factor * 500 for level in curve]
    assert rates == pytest.approx([20, 60, 100, 140, 160, 180, 190, 200], rel=0.05)
    p95 = [level.streams[0].latency_ms(95) for level in curve]
    assert p95[0] < 1.6 * 10
    assert p95[-1] > 4 * p95[0]
    assert all(later > 0.8 * earlier for earlier, later in pairwise(p95))
    assert all(level.ended == "its time was up" for level in curve), "they tell more when whole"

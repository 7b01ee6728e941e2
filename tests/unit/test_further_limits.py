"""Capacities within several limits on a simulated server whose true capacities are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from optimizer.load.capacity import CapacityProtocol, find_capacity
from optimizer.load.extra_limits import find_capacities
from optimizer.load.level_plan import ClosedLoop
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import HIGHEST_SHARE, ExtraLimit
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.test_load_capacity import SERVERS

PROTOCOL = CapacityProtocol()


def search(server: SimulatedServer, *limits_ms: float, seed: int = 0) -> Evaluation:
    fresh = replace(server, rng=np.random.default_rng(seed), plans=[])
    return find_capacities(fresh, fresh.work, PROTOCOL, 64, limits_ms)


def own_ms(server: SimulatedServer) -> float:
    return server.work.shortest_limit_ms


def further(server: SimulatedServer, factor: float, seeds: int) -> Iterator[tuple[float, bool]]:
    """How far off each capacity is, relative to the truth, and whether that is in the interval."""
    limit_ms = factor * own_ms(server)
    other = replace(server, work=server.work.within(limit_ms))
    truth = min(other.true_capacity_per_second(), HIGHEST_SHARE * server.saturation_per_second)
    for seed in range(seeds):
        [found] = search(server, limit_ms, seed=seed).extra_limits
        measured = found.measurement
        high = measured.capacity_high_per_second
        assert high is not None
        # The truth itself is known to 0.2 % of saturation, and saturation to 1.5 %.
        inside = 0.98 * measured.capacity_low_per_second <= truth <= 1.02 * high
        yield abs(measured.capacity_per_second / truth - 1), inside


def test_the_capacity_within_a_further_limit_is_close_to_the_truth() -> None:
    names = ("M/D/2, slow", "batches of 16, tight", "two of batches of 8")
    factors = {"batches of 16, tight": (0.8, 1.25)}
    all_found = [
        each
        for name in names
        for factor in factors.get(name, (0.6, 1.6))
        for each in further(SERVERS[name], factor, seeds=8)
    ]
    errors, inside = zip(*all_found, strict=True)
    assert np.median(errors) <= 0.05
    assert np.percentile(errors, 90) <= 0.15
    assert np.mean(inside) >= 0.9


def test_the_first_limit_is_searched_for_as_it_is_alone() -> None:
    server = SERVERS["M/D/2, slow"]
    fresh = replace(server, rng=np.random.default_rng(3), plans=[])
    alone = find_capacity(fresh, fresh.work, PROTOCOL, 64)
    both = search(server, 30.0, seed=3)
    assert replace(both, extra_limits=()) == alone
    assert [each.limit_ms for each in both.extra_limits] == [30.0]


def test_a_limit_that_the_levels_have_settled_takes_none_more() -> None:
    """Met next to saturation with ease within 500 ms: so it is within any longer limit."""
    found = search(SERVERS["light load within a wide limit"], 900.0)
    [longer] = found.extra_limits
    assert longer.measurement.levels == ()
    assert longer.measurement.load_factor == pytest.approx(
        HIGHEST_SHARE * found.valid_measurement.levels[0].load_factor
    )
    assert longer.excess < -0.5


def seconds_of(found: ExtraLimit) -> float:
    levels = found.measurement.levels
    return sum(PROTOCOL.warmup_seconds + level.seconds for level in levels)


def test_a_further_limit_saturates_nothing_and_takes_no_longer_than_the_first() -> None:
    server = SERVERS["M/D/2, slow"]
    plans = replace(server, plans=[])
    found = find_capacities(plans, plans.work, PROTOCOL, 64, (40.0, 90.0))
    assert [isinstance(plan.load, ClosedLoop) for plan in plans.plans].count(True) == 1
    assert len(found.extra_limits) == 2
    for each in found.extra_limits:
        assert {level.kind for level in each.measurement.levels} <= {"open_loop"}
        assert {level.shortest_limit_ms for level in each.measurement.levels} <= {each.limit_ms}
        assert seconds_of(each) <= PROTOCOL.load_seconds + PROTOCOL.check_seconds
    capacities = [each.measurement.load_factor for each in found.extra_limits]
    assert capacities[0] < found.valid_measurement.load_factor < capacities[1]


def test_a_limit_below_the_service_time_is_met_at_no_load() -> None:
    found = search(SERVERS["M/D/2, slow"], 15.0)
    [shorter] = found.extra_limits
    assert found.outcome == "ok"
    assert shorter.measurement.load_factor == 0.0
    assert shorter.excess > 0
    assert "over the limit of 15 ms" in shorter.measurement.ended


def test_what_misses_the_first_limit_may_meet_a_longer_one() -> None:
    server = SimulatedServer(workload(15.0), instances=2, batch_seconds=0.020)
    found = search(server, 60.0)
    assert found.outcome == "infeasible"
    [longer] = found.extra_limits
    truth = replace(server, work=server.work.within(60.0)).true_capacity_per_second()
    assert longer.measurement.capacity_per_second == pytest.approx(truth, rel=0.15)
    assert longer.excess <= 0

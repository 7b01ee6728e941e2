"""Fleets whose queues have a known answer: M/M/c, by Erlang's C formula."""

from __future__ import annotations

import math

import pytest

from optimizer.fleet.planning.fleet_simulation import simulate_fleet
from optimizer.fleet.planning.instance import Instance, ServedStreams
from optimizer.fleet.planning.load_response import simulate_response
from optimizer.fleet.planning.mix import FleetMember
from optimizer.measurement.cost import Price
from optimizer.simulator.batcher import Scheduler
from optimizer.simulator.network import one_batcher
from optimizer.simulator.prediction import OfferedStream
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.streams import LatencyLimit

MEAN_MS = 100.0
LIMIT_MS = 600.0
PERCENTILE = 95.0
SERVERS = [2, *(pytest.param(count, marks=pytest.mark.slow) for count in (1, 4))]
SLOW_LIMITS = [pytest.param(limit_ms, marks=pytest.mark.slow) for limit_ms in (400.0, 1500.0)]


def served(servers: int, limit_ms: float = LIMIT_MS) -> ServedStreams:
    """Requests one by one, each with an exponential service time."""
    curve = ServiceCurve((1,), (MEAN_MS,), spread=1.0, busy_factors=(1.0,) * servers)
    scheduler = Scheduler(max_batch_size=1, dynamic=False, instances=servers)
    limit = LatencyLimit(PERCENTILE, limit_ms)
    stream = OfferedStream("poisson", limit)
    return ServedStreams(one_batcher(scheduler, curve), (stream,), concurrency=8 * servers)


def late(rate: float, servers: int, limit_ms: float = LIMIT_MS) -> float:
    """P(wait + service > limit) in M/M/c (Gross and Harris, section 2.3)."""
    mu, limit = 1e3 / MEAN_MS, limit_ms / 1e3
    offered, busy = rate / mu, rate / mu / servers
    terms = [offered**n / math.factorial(n) for n in range(servers)]
    queued = offered**servers / math.factorial(servers) / (1 - busy)
    waits = queued / (sum(terms) + queued)
    drain = servers * mu - rate
    if math.isclose(drain, mu):
        return math.exp(-mu * limit) * (1 + waits * mu * limit)
    over = (drain * math.exp(-mu * limit) - mu * math.exp(-drain * limit)) / (drain - mu)
    return (1 - waits) * math.exp(-mu * limit) + waits * over


def most_within(servers: int, limit_ms: float = LIMIT_MS) -> float:
    """The rate at which just as many are late as may be."""
    low, high = 0.0, servers * 1e3 / MEAN_MS
    for _ in range(60):
        middle = (low + high) / 2
        kept = late(middle, servers, limit_ms) <= 1 - PERCENTILE / 100
        low, high = (middle, high) if kept else (low, middle)
    return low


def latency_ms(rate: float, servers: int) -> float:
    """At the percentile."""
    low, high = 0.0, 1e5
    for _ in range(60):
        middle = (low + high) / 2
        over = late(rate, servers, middle) > 1 - PERCENTILE / 100
        low, high = (middle, high) if over else (low, middle)
    return low


def test_the_formula_knows_the_single_server() -> None:
    assert late(5.0, 1) == pytest.approx(math.exp(-5.0 * 0.6))


@pytest.mark.parametrize("servers", SERVERS)
def test_an_instance_responds_to_load_as_theory_says(servers: int) -> None:
    found = simulate_response(served(servers), seed=1)
    within = found.per_second < 0.82 * servers * 1e3 / MEAN_MS
    rates = found.per_second[within]
    busy = rates * MEAN_MS / 1e3 / servers
    assert found.busy_share[within] == pytest.approx(busy, rel=0.03)
    expected = [latency_ms(rate, servers) for rate in rates]
    assert LIMIT_MS * (1 + found.limit_overshoot[within]) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("servers", SERVERS)
@pytest.mark.parametrize("limit_ms", [600.0, *SLOW_LIMITS])
def test_the_most_within_the_limit_is_that_of_theory(servers: int, limit_ms: float) -> None:
    found = simulate_response(served(servers, limit_ms), seed=2).most_within_per_second
    assert found == pytest.approx(most_within(servers, limit_ms), rel=0.03)


@pytest.mark.parametrize("servers", SERVERS)
@pytest.mark.parametrize("instances", [7, pytest.param(40, marks=pytest.mark.slow)])
def test_every_instance_of_a_fleet_answers_as_theory_says(servers: int, instances: int) -> None:
    each = 0.8 * servers * 1e3 / MEAN_MS
    found = simulate_fleet(served(servers), instances, instances * each, seed=3)
    assert found.latency_ms == pytest.approx(latency_ms(each, servers), rel=0.03)
    assert found.late_share == pytest.approx(late(each, servers), rel=0.1)
    assert found.keeps_limits == (late(each, servers) <= 0.05)
    assert found.requests > 8e5


def test_the_smallest_fleet_is_that_of_theory() -> None:
    price = Price("t", 1.0, "tests", "2026-01")
    member = FleetMember(
        Instance("t", price, 1.0, 1.0, 0.0, served(2)), simulate_response(served(2), seed=4)
    )
    for demand in (20.0, 95.0, 196.0):
        exactly = demand / most_within(2)
        assert abs(exactly - round(exactly)) > 0.03 * exactly, "no question of a hair's breadth"
        assert member.fewest(demand) == math.ceil(exactly)

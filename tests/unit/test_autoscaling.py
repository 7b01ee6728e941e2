from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from optimizer.fleet.planning.autoscaling import (
    METRICS,
    TICK_SECONDS,
    AutoscaledFleet,
    TargetTracking,
    autoscale,
    target_at,
)
from optimizer.fleet.planning.demand_curve import DemandCurve, constant_demand, daily_demand
from optimizer.fleet.planning.instance import ServedStreams
from optimizer.fleet.planning.load_response import Response, simulate_response
from optimizer.simulator.network_simulation import network_open_loop
from tests.unit.instances import batching_streams

LIMIT_MS = 60.0


@cache
def response() -> Response:
    return simulate_response(batching_streams(), seed=0)


def ran(curve: DemandCurve, policy: TargetTracking, begin_with: int = 1) -> AutoscaledFleet:
    return autoscale(curve, response(), LIMIT_MS, policy, begin_with)


def by_rate(share: float, delay_seconds: float = 240.0) -> TargetTracking:
    return TargetTracking("rate", share * response().most_within_per_second, delay_seconds)


@pytest.mark.parametrize("metric", METRICS)
def test_a_constant_demand_needs_what_its_target_says(metric: str) -> None:
    at = 0.7 * response().most_within_per_second
    policy = TargetTracking(metric, target_at(response(), metric, at), 240.0)  # type: ignore[arg-type]
    found = ran(constant_demand(10 * at), policy, begin_with=10)
    assert set(found.charged) == {10}
    assert found.late_share.max() < 0.01


def test_more_demand_is_served_after_the_delay() -> None:
    step = DemandCurve("step", (800.0,) * 12 + (2500.0,) * 12)
    found = ran(step, by_rate(0.8))
    calm = 40
    ordered = calm + int(np.argmax(found.charged[calm:] > found.charged[calm]))
    served = calm + int(np.argmax(found.serving[calm:] > found.serving[calm]))
    assert found.per_second[ordered] > 900.0
    assert served - ordered == 4, "minutes"
    assert found.late_share[ordered + 2 : served].max() == pytest.approx(1.0)
    assert found.late_share[90:118].max() < 0.01, "what had queued up is worked off"


def test_less_demand_lets_instances_go_only_after_a_while() -> None:
    step = DemandCurve("step", (400.0,) * 12 + (2500.0,) * 12)
    policy = by_rate(0.8)
    found = ran(step, policy)
    wanted = np.ceil(found.per_second / ((1 + policy.tolerance) * policy.target))
    lately = np.max([np.roll(wanted, ticks) for ticks in range(1, 6)], axis=0)
    assert (found.serving >= lately)[:40].all(), "of five minutes"
    assert set(found.serving[10:40]) == {1}


def test_a_higher_target_is_cheaper_and_later() -> None:
    curve = daily_demand(12_000.0, 2_000.0)
    cheap, dear = ran(curve, by_rate(1.0), 5), ran(curve, by_rate(0.6), 8)
    assert cheap.charged.mean() < 0.75 * dear.charged.mean()
    assert cheap.late_share.max() > dear.late_share.max()


def test_some_instances_are_always_there() -> None:
    found = ran(constant_demand(1.0), replace(by_rate(0.8), least=3))
    assert set(found.serving) == {3}


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(700.0, 1050.0), (600.0, 1260.0), (300.0, 1400.0)])
def test_late_shares_are_those_of_the_batcher_itself(low: float, high: float) -> None:
    """One instance through an hour of rise and fall, below and above its saturation.

    The fluid and the steady loads stand for every single request and execution.
    """
    swing = (1 - np.cos(np.linspace(0.0, 2 * np.pi, 13)[:-1])) / 2
    curve = DemandCurve("swing", tuple(low + (high - low) * swing))
    never = TargetTracking("rate", 1e9, 240.0)
    found = ran(curve, never)
    predicted = (found.late_share * found.per_second).sum() / found.per_second.sum()
    assert predicted == pytest.approx(simulated_late_share(batching_streams(), curve), abs=0.03)


def simulated_late_share(served: ServedStreams, curve: DemandCurve) -> float:
    """Of all requests of a demand's second period, at one instance; by Lewis and Shedler (1979)."""
    rng, end = np.random.default_rng(1), 2 * curve.seconds
    thinned = np.sort(rng.uniform(0.0, end, rng.poisson(curve.peak * end)))
    at = thinned[rng.random(len(thinned)) < curve.at(thinned) / curve.peak]
    draws = served.network.draw(np.zeros(len(at), dtype=np.int64), rng)
    done = network_open_loop(served.network, 1e3 * at, draws)
    late = done.latency_ms[at > curve.seconds] > served.streams[0].limit.latency_ms
    return float(late.mean())


def test_ticks_cover_the_period() -> None:
    found = ran(daily_demand(900.0, 300.0), by_rate(0.8))
    assert len(found.charged) * TICK_SECONDS == 86_400

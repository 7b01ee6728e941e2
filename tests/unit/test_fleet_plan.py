from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from optimizer.errors import UsageError
from optimizer.fleet.planning.demand_curve import (
    DemandCurve,
    constant_demand,
    curve_from_samples,
    daily_demand,
)
from optimizer.fleet.planning.fleet_plan import Plan, PlanInputs, plan_fleet
from optimizer.fleet.planning.fleet_simulation import simulate_fleet
from optimizer.fleet.planning.instance import Instance, simulated_capacity
from optimizer.report.plan_tables import headline, hours, tables
from tests.unit.instances import batching_streams, instance

CURVES = {
    "constant": constant_demand(9_300.0),
    "daily": daily_demand(12_000.0, 2_000.0),
    "recorded": curve_from_samples(
        "recorded",
        np.arange(24) * 3600.0,
        np.array([2, 2, 1, 1, 1, 2, 4, 9, 9, 8, 7, 9, 9, 6, 6, 7, 8, 9, 5, 4, 4, 3, 3, 2]) * 800.0,
    ),
}


@cache
def measured(capacity: float = 1100.0, low: float = 1050.0) -> Instance:
    return instance(capacity=capacity, low=low).calibrated(seed=0)


@cache
def planned(name: str) -> Plan:
    plan = plan_fleet([measured()], PlanInputs(CURVES[name]))
    assert plan is not None
    return plan


@pytest.mark.slow
def test_the_simulation_is_brought_to_the_measured_capacity() -> None:
    for capacity in (900.0, 1100.0, 1500.0):
        agreed = measured(capacity, capacity)
        assert simulated_capacity(agreed.served, seed=0) == pytest.approx(capacity, rel=0.01)
    assert measured(900.0, 900.0).moved > measured().moved


def test_a_simulation_that_cannot_be_brought_there_is_refused() -> None:
    """Neither where it serves too little, nor where it serves too much."""
    served = batching_streams(limit_ms=1000.0)
    allowed = simulated_capacity(served, seed=0)
    for capacity in (4 * allowed, allowed / 4):
        said = rf"a\.large: a capacity of {capacity:.1f}/s was .* allow {allowed:.1f}/s;"
        with pytest.raises(ValueError, match=said):
            instance(capacity=capacity, served=served).calibrated(seed=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["constant", "daily"])
def test_the_fleet_keeps_the_limit_and_one_less_than_the_smallest_misses_it(name: str) -> None:
    plan = planned(name)
    one = plan.single_type
    assert one is not None
    assert one.below_minimum is not None
    assert plan.fleet.instances >= one.at_minimum.instances == one.below_minimum.instances + 1
    # Seeds that the plan has not seen.
    peak, served = plan.inputs.curve.peak, one.member.instance.served
    for seed in (101, 102):
        recommended = simulate_fleet(served, plan.fleet.instances, peak, seed)
        assert recommended.keeps_limits
        too_few = simulate_fleet(served, one.below_minimum.instances, peak, seed)
        assert not too_few.keeps_limits


@pytest.mark.parametrize("name", CURVES)
def test_all_ways_but_those_that_say_so_keep_the_limit_in_every_step(name: str) -> None:
    plan = planned(name)
    constant_way, scheduled = plan.policies
    assert constant_way.missed_steps(plan.allowed) == 0
    assert scheduled.missed_steps(plan.allowed) == 0
    assert scheduled.usd_per_hour <= constant_way.usd_per_hour
    assert constant_way.usd_per_hour == pytest.approx(plan.fleet.usd_per_hour)
    assert constant_way.usd_per_month == pytest.approx(730.5 * plan.fleet.usd_per_hour)


def test_following_a_day_costs_less_than_its_peak_all_day() -> None:
    plan = planned("daily")
    assert plan.single_type is not None
    by_rate = plan.single_type.autoscaled[0]
    constant_way, scheduled = plan.policies
    assert scheduled.usd_per_hour < by_rate.usd_per_hour < 0.8 * constant_way.usd_per_hour
    assert by_rate.missed_steps(plan.allowed) == 0


def test_the_scheduled_fleet_is_there_before_the_demand_is() -> None:
    plan = planned("recorded")
    curve, scheduled = plan.inputs.curve, plan.policies[1]
    capacity = plan.fleet.members[0].capacity_per_second
    ahead = np.roll(curve.rates, -1)
    needed = np.ceil(np.maximum(curve.rates, ahead) / capacity - 1e-9)
    assert (scheduled.charged == needed).all()


def test_a_loss_is_simulated_or_said_to_be_too_much() -> None:
    plan = planned("constant")
    an_instance, a_zone = plan.losses
    assert plan.fleet.instances == 9
    assert an_instance.left.instances == 8
    assert a_zone.left.instances == 6
    assert a_zone.at_peak == (), "6 x 1200 saturate below 9,300"
    assert 60 < a_zone.waiting_seconds < 90
    assert [mix and mix.instances for mix in plan.surviving.values()] == [9, 10, 14]


@pytest.mark.slow
def test_headroom_and_survival_are_kept_at_the_peak() -> None:
    question = PlanInputs(CURVES["constant"], headroom=0.3, survival="instance")
    plan = plan_fleet([measured()], question)
    assert plan is not None
    assert plan.fleet.instances == 13, "12,090 / 1,050 and one more"


@pytest.mark.slow
def test_a_mixed_fleet_where_it_is_cheaper_or_nothing_else_can_be_had() -> None:
    slow = instance("b.small", 0.2, 300.0, served=batching_streams(3.0)).calibrated(seed=0)
    plan = plan_fleet([measured(), slow], PlanInputs(constant_demand(2_350.0)))
    assert plan is not None
    assert plan.fleet.counts == (2, 1)
    assert len(plan.at_peak) == 2
    assert all(found.keeps_limits for found in plan.at_peak)
    few = PlanInputs(constant_demand(2_350.0), most={"a.large": 1, "b.small": 5})
    rare = plan_fleet([measured(), slow], few)
    assert rare is not None
    assert rare.fleet.counts == (1, 5)
    assert rare.single_type is None
    assert plan_fleet([slow], few) is None


@pytest.mark.slow
def test_internet_scale_takes_thousands() -> None:
    slow = instance("gpu", 1.0, 36.0, served=batching_streams(28.0, 1000.0)).calibrated(seed=0)
    plan = plan_fleet([slow], PlanInputs(DemandCurve("burst", (40_000.0, 24_000.0))))
    assert plan is not None
    assert 1_080 < plan.fleet.instances < 1_160
    [found] = plan.at_peak
    assert found.keeps_limits
    assert found.requests > 4_000_000


def test_what_is_shown_names_every_way_and_every_verdict() -> None:
    plan = planned("daily")
    described = {"a.large": "two instances"}
    assert headline(plan).startswith("12 x a.large for 12,000 requests/s: $6.00 an hour, $4,383 a")
    first, over_time, peak, surviving = tables(plan, described)
    assert first.notes[0] == "a.large: two instances"
    assert [row[0] for row in over_time.rows] == [
        "constant", "scheduled", "scaled on rate", "scaled on busy", "scaled on queue",
    ]  # fmt: skip
    assert [row[0] for row in peak.rows] == [
        "recommended", "smallest", "one less", "an instance lost", "a zone lost",
    ]  # fmt: skip
    assert [row[-1] for row in peak.rows[:3]] == ["met", "met", "missed"]
    assert [row[0] for row in surviving.rows] == ["nothing", "an instance", "a zone"]
    by_hour = hours(plan)
    assert by_hour is not None
    assert len(by_hour.rows) == 24
    assert by_hour.rows[14][:2] == ("14:00", "12,000.0")
    assert hours(planned("constant")) is None


def test_a_demand_beyond_any_fleet_is_refused_before_it_is_simulated() -> None:
    with pytest.raises(
        UsageError, match=r"needs 9,\d{3} instances, and a plan can have at most 5,000"
    ):
        plan_fleet([measured()], PlanInputs(constant_demand(1e7)))

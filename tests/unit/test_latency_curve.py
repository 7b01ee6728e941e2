from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from optimizer.analysis.latency_curve import (
    LatencyCosts,
    MeasuredConfigurationLevels,
    capacity_within,
    latency_curve,
    usual_limits,
)
from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.run_summary import LoadRuns
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import HIGHEST_SHARE, Measurement
from optimizer.measurement.trial_record import TrialRecord
from tests.unit.studies import (
    DEMAND,
    LIMIT_MS,
    PRICE,
    four_points,
    infeasible,
    level,
    ok,
    record_of,
)
from tests.unit.tables import WORKLOAD

SPACE = four_points()
ONE, TWO, THREE, _ = (SPACE.config(SPACE.at(row)) for row in range(4))
SATURATION = 2.0


def certified(load: float, *, low: float | None = None, high: float | None = None) -> Measurement:
    return Measurement((), load, load if low is None else low, high, 500.0, "as made up")


def known(
    *levels: tuple[float, float],
    found: Measurement | None = None,
    config: ServingConfig = ONE,
    more: tuple[tuple[float, Measurement], ...] = (),
) -> MeasuredConfigurationLevels:
    """Levels by load factor and p95; saturates at 1,000/s."""
    own = found or certified(1.6, low=1.5, high=1.7)
    anchors = tuple(sorted(((LIMIT_MS, own), *more), key=lambda pair: pair[0]))
    whole = tuple(level(*each) for each in levels)
    return MeasuredConfigurationLevels(
        config, SATURATION, whole, anchors, tuple(limit for limit, _ in anchors)
    )


AROUND = ((1.2, 40.0), (1.6, 95.0), (1.7, 160.0))


def test_the_limit_that_was_searched_for_has_what_was_found() -> None:
    found = capacity_within(known(*AROUND), LIMIT_MS)
    assert found is not None
    capacity, basis = found
    assert (capacity.per_second, capacity.low, capacity.high) == (800.0, 750.0, 850.0)
    assert basis == "measured"


def test_capacity_never_falls_as_the_limit_grows() -> None:
    each = [capacity_within(known(*AROUND), limit) for limit in range(42, 400, 4)]
    capacities = [found[0] for found in each if found is not None]
    assert len(capacities) == len(each)
    for one, two in pairwise(capacities):
        assert one.low <= one.per_second <= two.per_second
        assert one.high is not None
        assert one.per_second <= one.high
    assert capacities[0].per_second < 800 < capacities[-1].per_second
    assert capacities[-1].per_second <= HIGHEST_SHARE * 1000


@pytest.mark.parametrize(
    ("limit_ms", "basis"), [(60.0, "measured"), (150.0, "measured"), (30.0, "extrapolated")]
)
def test_how_a_figure_is_known_is_said(limit_ms: float, basis: str) -> None:
    found = capacity_within(known(*AROUND), limit_ms)
    assert found is not None
    assert found[1] == basis


def test_a_limit_far_below_every_latency_has_no_capacity() -> None:
    assert capacity_within(known(*AROUND), 0.5) is None


def test_what_was_missed_within_a_limit_is_missed_within_every_shorter_one() -> None:
    floor = known((0.1, 150.0), found=certified(0.0, high=0.1))
    assert capacity_within(floor, LIMIT_MS) is None
    assert capacity_within(floor, 90.0) is None
    longer = capacity_within(floor, 200.0)
    assert longer is not None
    assert longer[0].per_second >= 50.0


def test_what_was_found_within_two_limits_bounds_what_lies_between() -> None:
    both = known(*AROUND, more=((200.0, certified(1.62, low=1.61, high=1.63)),))
    between = capacity_within(both, 150.0)
    assert between is not None
    assert 800.0 <= between[0].per_second <= 810.0
    exact = capacity_within(both, 200.0)
    assert exact is not None
    assert (exact[0].per_second, exact[1]) == (810.0, "measured")


def test_offers_are_compared_by_what_they_surely_cost_and_fleets_sized_by_it() -> None:
    sure = known(*AROUND, found=certified(1.5, low=1.5), config=ONE)
    unsure = known(*AROUND, found=certified(1.6, low=0.8), config=TWO)
    none = known(found=certified(0.0), config=THREE)
    [within] = latency_curve([unsure, sure, none], [LIMIT_MS], PRICE, DEMAND)
    assert [offer.config for offer in within.offers] == [ONE, TWO]
    assert [offer.score.replicas for offer in within.offers] == [1, 2]
    assert within.cheapest is not None
    # 750 requests/s at 0.36 $ an hour.
    assert within.cheapest.usd_per_million == pytest.approx(0.36 / (750 * 3600) * 1e6)
    costs = LatencyCosts("made up", WORKLOAD.streams, (LIMIT_MS,), PRICE, DEMAND, (within,))
    assert costs.front == [(ONE, [LIMIT_MS])]
    [nothing] = latency_curve([none], [LIMIT_MS], PRICE, DEMAND)
    assert nothing.cheapest is None


def test_a_longer_limit_costs_no_more_however_little_is_known_of_it() -> None:
    several = [known(*AROUND), known((0.4, 20.0), (0.5, 90.0), (0.45, 30.0), config=TWO)]
    limits = [20.0, 25.0, 30.0, 40.0, 60.0, 90.0, 100.0, 150.0, 300.0]
    curve = latency_curve(several, limits, PRICE, DEMAND)
    costs = [w.cheapest.surely_usd_per_million for w in curve if w.cheapest is not None]
    assert len(costs) > 5
    assert costs == sorted(costs, reverse=True)
    fleets = [w.cheapest.score.replicas for w in curve if w.cheapest is not None]
    assert fleets == sorted(fleets, reverse=True)


def test_the_usual_limits_begin_at_the_least_latency_and_hold_the_studys_own() -> None:
    limits = usual_limits([known(*AROUND), known((1.0, 20.0), config=TWO)], LIMIT_MS)
    assert len(limits) == 8
    assert limits == sorted(limits)
    assert (limits[0], limits[-1]) == (20.0, 200.0)
    assert LIMIT_MS in limits
    two = usual_limits([known(*AROUND)], LIMIT_MS, 77.5)
    assert {LIMIT_MS, 77.5} <= set(two)


def confirmation(number: int, config: ServingConfig, capacity: float, p95_ms: float) -> TrialRecord:
    return record_of(number, config, ok(capacity, p95_ms))


def test_what_was_confirmed_counts_as_it_was_confirmed_down_to_what_it_showed() -> None:
    trial = record_of(0, ONE, ok(500.0, 80.0))
    rounds = [confirmation(0, ONE, 480.0, 60.0), confirmation(1, ONE, 470.0, 70.0)]
    [each] = measured_configurations([trial], LoadRuns(confirmations=rounds))
    assert [limit for limit, _ in each.certified] == [70.0, LIMIT_MS]
    for limit in (70.0, 85.0, LIMIT_MS):
        found = capacity_within(each, limit)
        assert found is not None
        assert (found[0].per_second, found[0].low, found[1]) == (470.0, 470.0, "measured")
    shorter = capacity_within(each, 65.0)
    assert shorter is not None
    assert shorter[0].low < 470.0


def test_what_did_not_hold_when_it_was_measured_again_is_left_out() -> None:
    trials = [record_of(0, ONE, ok(500.0)), record_of(1, TWO, ok(400.0))]
    again = [confirmation(0, ONE, 480.0, 60.0), record_of(1, ONE, infeasible(500.0))]
    found = measured_configurations(trials, LoadRuns(confirmations=again))
    assert [each.config for each in found] == [TWO]


def test_a_light_load_of_the_calibration_is_one_level_more() -> None:
    trial = record_of(0, ONE, ok(500.0, 80.0))
    light = replace(trial, outcome="bounded")
    [each] = measured_configurations([trial], LoadRuns(calibration=[light]))
    assert len(each.levels) == 4
    assert [limit for limit, _ in each.certified] == [LIMIT_MS]

"""Capacities within other limits, on a simulated server whose true capacities are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from optimizer.load.capacity import CapacityProtocol, find_capacity
from optimizer.load.extra_limits import find_capacities
from optimizer.load.level_plan import ClosedLoop
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import HIGHEST_SHARE, ExtraLimit, LevelVerdict
from optimizer.measurement.other_limits import at_other_limit, share_within
from tests.unit.simulated_server import SimulatedServer, workload
from tests.unit.studies import LIMIT_MS, level
from tests.unit.test_load_capacity import SERVERS

PROTOCOL = CapacityProtocol()


def truth_within(server: SimulatedServer, limit_ms: float) -> float:
    other = replace(server, work=server.work.within(limit_ms))
    return min(other.true_capacity_per_second(), HIGHEST_SHARE * server.saturation_per_second)


@dataclass(frozen=True)
class Seen:
    shown: bool
    inside: bool
    error: float


def seen(server: SimulatedServer, limit_ms: float, seeds: int) -> Iterator[Seen]:
    """The capacity within another limit than the search's own, by its levels, and the truth."""
    truth = truth_within(server, limit_ms)
    for seed in range(seeds):
        fresh = replace(server, rng=np.random.default_rng(seed), plans=[])
        levels = find_capacity(fresh, fresh.work, PROTOCOL, 64).valid_measurement.levels
        rate = levels[0].achieved_per_second
        share = share_within(levels, levels[0].load_factor, limit_ms)
        assert share is not None
        assert share.low <= share.share <= share.high
        # The truth itself is known to 0.2 % of saturation, and saturation to 1.5 %.
        inside = 0.98 * share.low * rate <= truth <= 1.02 * share.high * rate
        yield Seen(share.shown, inside, abs(share.share * rate / truth - 1))


FACTORS = {
    "M/D/2, slow": (0.6, 0.8, 1.25, 2.5),
    "M/D/4, tight": (0.8, 1.6),
    "batches of 16, tight": (0.8, 1.25, 2.5),
    "a limit just above the service time": (1.6,),
}
"""Of the limit that was searched for."""


@pytest.mark.slow
def test_the_truth_is_mostly_within_the_interval() -> None:
    all_seen = [
        each
        for name, factors in FACTORS.items()
        for stream in SERVERS[name].work.streams
        for factor in factors
        for each in seen(SERVERS[name], factor * stream.limit.latency_ms, seeds=8)
    ]
    shown = [each for each in all_seen if each.shown]
    beyond = [each for each in all_seen if not each.shown]
    assert min(len(shown), len(beyond)) >= 20
    assert np.mean([each.inside for each in shown]) >= 0.9
    assert np.mean([each.inside for each in beyond]) >= 0.9
    assert np.median([each.error for each in shown]) <= 0.06


def test_what_was_met_next_to_saturation_is_met_within_every_longer_limit() -> None:
    found = share_within([level(1.0, kind="saturation"), level(0.95, 35.0)], 1.0, 90.0)
    assert found is not None
    assert (found.share, found.low, found.shown) == (HIGHEST_SHARE, HIGHEST_SHARE, True)


def test_what_a_lower_load_missed_is_not_met_with_ease_above_it() -> None:
    """The machine was slower when the second level was measured."""
    levels = [level(0.95, 35.0), level(0.6, 120.0)]
    found = share_within(levels, 1.0, 90.0)
    assert found is not None
    assert found.low < 0.9


def test_a_limit_below_all_that_was_seen_is_not_shown_and_its_interval_is_wide() -> None:
    levels = [level(0.8, 60.0), level(0.9, 90.0)]
    among, below = (share_within(levels, 1.0, limit_ms) for limit_ms in (80.0, 20.0))
    assert among is not None
    assert below is not None
    assert (among.shown, among.met, below.shown, below.met) == (True, True, False, False)
    assert 0.8 < among.share < 0.9
    assert below.high - below.low > 3 * (among.high - among.low)
    assert share_within([level(1.0, kind="saturation")], 1.0, 80.0) is None


@pytest.mark.parametrize(
    ("verdict", "limit_ms", "follows"),
    [
        ("feasible", 150.0, True),
        ("feasible", 50.0, False),
        ("infeasible", 50.0, True),
        ("infeasible", 150.0, False),
    ],
)
def test_a_verdict_stays_where_it_follows(
    verdict: LevelVerdict, limit_ms: float, follows: bool
) -> None:
    found = at_other_limit(replace(level(0.5), verdict=verdict), limit_ms)
    assert found.verdict == (verdict if follows else None)
    assert found.shortest_limit_ms == limit_ms


def test_the_limits_of_several_streams_keep_their_proportion_and_the_worst_decides() -> None:
    one, two = level(0.5, 50.0).streams[0], level(0.5, 180.0).streams[0]
    both = replace(level(0.5), streams=(one, replace(two, name="other", limit_ms=2 * LIMIT_MS)))
    again = at_other_limit(both, 60.0)
    assert [stream.limit_ms for stream in again.streams] == [60.0, 120.0]
    assert again.limit_overshoot == pytest.approx(180 / 120 - 1)


def test_a_client_that_lagged_too_much_for_a_short_limit_makes_a_level_void_within_it() -> None:
    client = replace(level(0.5).client, lag_ms=4.0, longest_lag_ms=5.0)
    lagging = replace(level(0.5, 10.0), client=client)
    assert at_other_limit(lagging, 100.0).meets_limits
    assert not at_other_limit(lagging, 40.0).meets_limits


def search(server: SimulatedServer, *limits_ms: float, seed: int = 0) -> Evaluation:
    fresh = replace(server, rng=np.random.default_rng(seed), plans=[])
    return find_capacities(fresh, fresh.work, PROTOCOL, 64, limits_ms)


def extra(server: SimulatedServer, factor: float, seeds: int) -> Iterator[tuple[float, bool]]:
    """How far off each capacity is, relative to the truth, and whether that is in the interval."""
    limit_ms = factor * server.work.shortest_limit_ms
    truth = truth_within(server, limit_ms)
    for seed in range(seeds):
        [found] = search(server, limit_ms, seed=seed).extra_limits
        measured = found.measurement
        high = measured.capacity_high_per_second
        assert high is not None
        # The truth itself is known to 0.2 % of saturation, and saturation to 1.5 %.
        inside = 0.98 * measured.capacity_low_per_second <= truth <= 1.02 * high
        yield abs(measured.capacity_per_second / truth - 1), inside


@pytest.mark.slow
def test_the_capacity_within_a_extra_limit_is_close_to_the_truth() -> None:
    names = ("M/D/2, slow", "batches of 16, tight", "two of batches of 8")
    factors = {"batches of 16, tight": (0.8, 1.25)}
    all_found = [
        each
        for name in names
        for factor in factors.get(name, (0.6, 1.6))
        for each in extra(SERVERS[name], factor, seeds=8)
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


def test_a_limit_that_the_levels_decide_takes_none_more() -> None:
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


def test_a_extra_limit_saturates_nothing_and_takes_no_longer_than_the_first() -> None:
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

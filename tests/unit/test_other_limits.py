"""What levels say of another limit, on a simulated server whose true capacities are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from optimizer.load.capacity import CapacityProtocol, find_capacity
from optimizer.load.extra_limits import at_other_limit, share_within
from optimizer.measurement.level import HIGHEST_SHARE, LevelVerdict
from tests.unit.simulated_server import SimulatedServer
from tests.unit.studies import LIMIT_MS, level
from tests.unit.test_load_capacity import SERVERS

PROTOCOL = CapacityProtocol()


@dataclass(frozen=True)
class Seen:
    shown: bool
    inside: bool
    error: float


def seen(server: SimulatedServer, limit_ms: float, seeds: int) -> Iterator[Seen]:
    """The capacity within another limit than the search's own, by its levels, and the truth."""
    other = replace(server, work=server.work.within(limit_ms))
    truth = min(other.true_capacity_per_second(), HIGHEST_SHARE * server.saturation_per_second)
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

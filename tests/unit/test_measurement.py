from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from optimizer.measurement.estimates import (
    CONFIDENCE,
    Percentile,
    percentile_with_interval,
    rate_interval,
)
from optimizer.measurement.level import LevelKind, LoadLevel, Measurement, StreamLevel
from optimizer.measurement.resource_use import ClientUse


def latencies(count: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """1.0, 2.0, ... in an order that is not sorted: the value is its own rank."""
    return np.random.default_rng(0).permutation(np.arange(1, count + 1, dtype=float))


def upper_end(found: Percentile) -> float:
    return math.inf if found.high_ms is None else found.high_ms


@pytest.mark.parametrize(
    ("percentile", "count", "rank"),
    [
        (50, 1, 1),
        (50, 4, 3),
        (50, 5, 3),
        (95, 19, 19),
        (95, 100, 96),
        (95, 1000, 951),
        (99, 99, 99),
        (99, 100, 100),
        (55, 99, 55),  # 0.55 * 100 is above 55 in floating point
        (99.9, 999, 999),  # and so is 0.999 * 1000
        (100, 7, 7),
        (0, 7, 1),
    ],
)
def test_the_estimate_is_at_the_weibull_rank(percentile: float, count: int, rank: int) -> None:
    found = percentile_with_interval(latencies(count), percentile)
    assert (found.value_ms, found.samples, found.percentile) == (rank, count, percentile)


@pytest.mark.parametrize(
    ("percentile", "count", "low", "high"),
    [
        (50, 100, 40, 61),  # the textbook's ranks for a median of 100
        (95, 100, 90, 100),
        (95, 1000, 936, 964),
        (99, 1000, 983, 997),
    ],
)
def test_the_interval_ends_are_the_closest_ranks_that_leave_a_tail_each(
    percentile: float, count: int, low: int, high: int
) -> None:
    found = percentile_with_interval(latencies(count), percentile)
    assert (found.low_ms, found.high_ms) == (low, high)
    # The samples below the percentile are binomial: neither end is further off than it must be.
    below = stats.binom(count, percentile / 100)
    tail = (1 - CONFIDENCE) / 2
    assert below.cdf(low - 1) < tail <= below.cdf(low)
    assert below.sf(high - 1) <= tail < below.sf(high - 2)


@pytest.mark.parametrize(
    ("percentile", "count", "low_bounded", "high_bounded"),
    [
        (50, 5, False, False),
        (50, 6, True, True),  # 1 - 2 x 0.5^6 = 0.969, the least for a median
        (95, 20, True, False),
        (95, 71, True, False),
        (95, 72, True, True),  # 0.95^72 = 0.0249 is the first below 0.025
    ],
)
def test_an_end_that_the_samples_cannot_bound_is_open(
    percentile: float, count: int, low_bounded: bool, high_bounded: bool
) -> None:
    found = percentile_with_interval(latencies(count), percentile)
    assert (found.low_ms > 0) is low_bounded
    assert (found.high_ms is not None) is high_bounded


@pytest.mark.parametrize(
    ("percentile", "count"), [(50, 3), (50, 40), (95, 50), (95, 400), (99, 600)]
)
def test_the_interval_covers_the_true_percentile_as_often_as_it_says(
    percentile: float, count: int
) -> None:
    rng = np.random.default_rng(7)
    truth = float(stats.expon.ppf(percentile / 100))
    runs = 1500
    covered = 0
    for _ in range(runs):
        found = percentile_with_interval(rng.exponential(size=count), percentile)
        covered += found.low_ms <= truth <= upper_end(found)
    three_sigma = 3 * math.sqrt(CONFIDENCE * (1 - CONFIDENCE) / runs)
    assert covered / runs >= CONFIDENCE - three_sigma


@given(
    samples=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=200),
    percentile=st.floats(1, 99.9),
)
def test_the_estimate_lies_in_its_interval(samples: list[float], percentile: float) -> None:
    found = percentile_with_interval(np.array(samples), percentile)
    assert found.low_ms <= found.value_ms <= upper_end(found)
    assert found.value_ms in samples


def test_samples_that_depend_on_each_other_are_worth_fewer() -> None:
    alone = percentile_with_interval(latencies(1000), 95)
    together = percentile_with_interval(latencies(1000), 95, inflation=4)
    assert together.effective_samples == 250
    assert together.value_ms == 954  # 0.95 x 1000 x 251 / 250
    assert together.low_ms < alone.low_ms
    assert upper_end(together) > upper_end(alone)


def test_a_percentile_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        percentile_with_interval(np.array([]), 95)


def test_samples_are_left_in_their_order() -> None:
    samples = np.array([3.0, 1.0, 2.0])
    percentile_with_interval(samples, 50)
    assert samples.tolist() == [3.0, 1.0, 2.0]


def test_a_rate_and_its_interval() -> None:
    # Mean 105/s, standard error 5/sqrt(3); t(0.975, 2 degrees of freedom) = 4.3027.
    mean, low, high = rate_interval([200, 210, 220], seconds_each=2.0)
    half = 4.302653 * 5 / math.sqrt(3)
    assert (mean, low, high) == pytest.approx((105, 105 - half, 105 + half))


def test_a_steady_rate_has_no_width_and_none_is_negative() -> None:
    assert rate_interval([50, 50, 50], 0.5) == (100, 100, 100)
    assert rate_interval([0, 9], 1.0)[1] == 0.0


@pytest.mark.parametrize("counts", [[], [4]])
def test_a_rate_interval_needs_two_slices(counts: list[int]) -> None:
    with pytest.raises(ValueError, match=f"at least 2 slices, got {len(counts)}"):
        rate_interval(counts, 1.0)


def test_the_rate_interval_covers_the_true_rate_as_often_as_it_says() -> None:
    rng = np.random.default_rng(8)
    covered = 0
    for _ in range(1500):
        _, low, high = rate_interval([int(n) for n in rng.poisson(80, size=10)], seconds_each=0.5)
        covered += low <= 160 <= high
    assert covered / 1500 == pytest.approx(CONFIDENCE, abs=0.02)


def stream(p95_ms: float, limit_ms: float = 100, errors: int = 0) -> StreamLevel:
    return StreamLevel(
        name="bert",
        offered_per_second=10,
        achieved_per_second=9,
        sent=100,
        completed=100 - errors,
        errors=errors,
        first_error="refused" if errors else None,
        mean_ms=p95_ms / 2,
        mean_from_send_ms=p95_ms / 2,
        latencies=(Percentile(95, p95_ms, p95_ms, p95_ms, 98, 98),),
        limit_percentile=95,
        limit_ms=limit_ms,
    )


def level(load_factor: float, *streams: StreamLevel, kind: LevelKind = "open_loop") -> LoadLevel:
    return LoadLevel(
        kind=kind,
        load_factor=load_factor,
        seconds=4.0,
        streams=streams,
        server=(),
        client=ClientUse(1, 0.1, 50.0, 0.1),
    )


def test_the_excess_is_relative_to_the_limit() -> None:
    assert stream(150, limit_ms=100).limit_overshoot == pytest.approx(0.5)
    assert stream(50, limit_ms=100).limit_overshoot == pytest.approx(-0.5)


def test_only_stored_percentiles_are_known() -> None:
    assert stream(80).latency_ms(95) == 80
    with pytest.raises(KeyError, match="percentile 99 was not recorded"):
        stream(80).latency_ms(99)


def test_a_level_is_as_good_as_its_worst_stream() -> None:
    both = level(1.0, stream(50, errors=1), stream(150, errors=3))
    assert both.limit_overshoot == pytest.approx(0.5)
    assert not both.meets_limits
    assert both.errors == 4
    assert both.achieved_per_second == 18


def test_the_stream_that_waits_longest_need_not_be_the_worst() -> None:
    slow, worst = stream(150, limit_ms=300), stream(90, limit_ms=100)
    both = level(1.0, slow, worst)
    assert both.worst is worst
    assert both.latency_ms(95) == 150
    assert both.offered_per_second == 20


def test_exactly_at_the_limit_meets_it() -> None:
    assert level(1.0, stream(100, limit_ms=100, errors=0)).meets_limits


def test_a_level_with_an_error_meets_no_limit() -> None:
    assert not level(1.0, stream(50, limit_ms=100, errors=1)).meets_limits


def test_capacity_follows_from_the_load_factor() -> None:
    levels = (
        level(0.9, stream(300), kind="saturation"),
        level(0.8, stream(120)),
        level(0.6, stream(90)),
        level(0.4, stream(50)),
    )
    found = Measurement(levels, 0.6, 0.55, 0.8, demand_per_second=500, ended="bisected")
    assert found.capacity_per_second == pytest.approx(300)
    assert found.capacity_low_per_second == pytest.approx(275)
    assert found.measuring_seconds == 16
    assert found.open_loop == levels[1:]
    assert found.level_at_capacity is levels[2]


def test_no_level_is_at_capacity_where_none_met_the_limits() -> None:
    levels = (level(0.9, stream(50), kind="saturation"), level(0.05, stream(300)))
    assert Measurement(levels, 0, 0, 0.05, 500, "floor").level_at_capacity is None

"""Arrival processes, where they differ from each other."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from optimizer.workload.arrivals import (
    ArrivalTrace,
    BurstArrivals,
    Bursts,
    ConstantArrivals,
    PoissonArrivals,
    TraceArrivals,
)


def test_gaps_are_exponential() -> None:
    due = PoissonArrivals().due_seconds(500, 40, np.random.default_rng(7))
    assert stats.kstest(np.diff(due), stats.expon(scale=1 / 500).cdf).pvalue > 0.01


def test_constant_gaps_are_all_the_same() -> None:
    due = ConstantArrivals().due_seconds(50, 2, np.random.default_rng(7))
    assert len(due) == 100
    assert np.allclose(np.diff(due), 0.02)


def test_a_trace_keeps_its_shape_at_another_rate_and_starts_over() -> None:
    trace = ArrivalTrace("digest", (0.0, 1.0, 1.0, 5.0), 8.0)
    # 4 arrivals in 8 s were recorded; at 2/s they come four times as fast, and ten times over.
    due = TraceArrivals(trace).due_seconds(2, 20, np.random.default_rng(7))
    assert len(due) == 40
    gaps = np.round(np.diff(due), 9)
    assert set(gaps.tolist()) == {0.0, 0.25, 0.75, 1.0}


BURSTS = Bursts(times_mean=3.0, burst_seconds=2.0, period_seconds=20.0)


def _counts(due: NDArray[np.float64], begin: float) -> NDArray[np.int64]:
    """Count the arrivals in each second of a period, over all periods; shape [20]."""
    return np.bincount(np.floor((due + begin) % 20.0).astype(int), minlength=20)


@pytest.mark.parametrize("begin", [0.0, 1.0, 7.3])
def test_the_rate_alternates_and_keeps_its_mean(begin: float) -> None:
    due = BurstArrivals(replace(BURSTS, begin_seconds=begin)).due_seconds(
        100.0, 400.0, np.random.default_rng(7)
    )
    assert abs(len(due) - 40_000) <= 6 * 200
    counts = _counts(due, begin)
    assert np.allclose(counts[:2], 6_000, atol=6 * 80)
    assert np.allclose(counts[2:], 2_000 * BURSTS.quiet_times_mean, atol=6 * 45)


def test_arrivals_within_a_burst_are_independent() -> None:
    due = BurstArrivals(replace(BURSTS, begin_seconds=0.0)).due_seconds(
        1_000.0, 2.0, np.random.default_rng(7)
    )
    assert stats.kstest(np.diff(due), stats.expon(scale=1 / 3_000).cdf).pvalue > 0.01


def test_whole_periods_have_the_same_share_wherever_they_begin() -> None:
    rng = np.random.default_rng(5)
    counts = [len(BurstArrivals(BURSTS).due_seconds(50.0, 20.0, rng)) for _ in range(300)]
    assert np.var(counts) / np.mean(counts) < 1.3, "a Poisson number in whole periods"
    parts = [len(BurstArrivals(BURSTS).due_seconds(50.0, 2.0, rng)) for _ in range(300)]
    assert np.var(parts) / np.mean(parts) > 5, "a short level has a burst or none"


def test_a_burst_may_have_all_arrivals_of_its_period() -> None:
    bursts = Bursts(10.0, 2.0, 20.0, begin_seconds=0.0)
    due = BurstArrivals(bursts).due_seconds(50.0, 200.0, np.random.default_rng(7))
    assert bursts.quiet_times_mean == 0.0
    assert _counts(due, 0.0)[:2].sum() >= len(due) - 1


@given(begin=st.floats(0, 60), seconds=st.floats(0, 100))
def test_shifting_inverts_the_steady_time(begin: float, seconds: float) -> None:
    steady = BURSTS.steady_seconds(begin + seconds) - BURSTS.steady_seconds(begin)
    [shifted] = BURSTS.shifted(np.array([steady]), begin)
    assert shifted == pytest.approx(seconds, abs=1e-6)

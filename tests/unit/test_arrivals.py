"""Arrival processes, where they differ from each other."""

import numpy as np
from scipy import stats

from optimizer.workload.arrivals import (
    ArrivalTrace,
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

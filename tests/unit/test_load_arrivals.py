"""Poisson arrivals, where they differ from other processes."""

import numpy as np
from scipy import stats

from optimizer.load.arrivals import PoissonArrivals


def test_gaps_are_exponential() -> None:
    due = PoissonArrivals().due_seconds(500, 40, np.random.default_rng(7))
    assert stats.kstest(np.diff(due), stats.expon(scale=1 / 500).cdf).pvalue > 0.01

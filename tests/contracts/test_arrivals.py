"""What holds for every arrival process."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.workload.arrivals import (
    ArrivalPattern,
    Arrivals,
    ArrivalTrace,
    Bursts,
    arrivals_of,
)

rates = st.floats(0.1, 2_000)
durations = st.floats(0.01, 20)
seeds = st.integers(0, 2**32 - 1)


PATTERNS: dict[str, ArrivalPattern] = {
    "poisson": "poisson",
    "constant": "constant",
    "trace": ArrivalTrace("digest", (0.0, 0.1, 0.1, 0.15, 2.0), 3.0),
    "trace of one arrival": ArrivalTrace("digest", (0.0,), 0.5),
    "bursts": Bursts(3.0, 0.01, 0.1),
    "bursts and nothing else": Bursts(10.0, 0.003, 0.03),
}


@pytest.fixture(params=sorted(PATTERNS), scope="module")
def arrivals(request: pytest.FixtureRequest) -> Arrivals:
    return arrivals_of(PATTERNS[request.param])


@given(rate=rates, duration=durations, seed=seeds)
def test_times_ascend_within_the_duration(
    arrivals: Arrivals, rate: float, duration: float, seed: int
) -> None:
    due = arrivals.due_seconds(rate, duration, np.random.default_rng(seed))
    assert due.dtype == np.float64
    assert due.ndim == 1
    assert np.all(np.diff(due) >= 0)
    assert np.all((due >= 0) & (due < duration))


@given(rate=rates, seed=seeds)
def test_the_mean_rate_is_the_given_one(arrivals: Arrivals, rate: float, seed: int) -> None:
    expected = 10_000
    due = arrivals.due_seconds(rate, expected / rate, np.random.default_rng(seed))
    assert abs(len(due) - expected) <= 6 * np.sqrt(expected)


def test_short_levels_have_their_share_of_requests_on_average(arrivals: Arrivals) -> None:
    rng, draws = np.random.default_rng(3), 4_000
    counts = [len(arrivals.due_seconds(50, 0.25 / 50, rng)) for _ in range(draws)]
    assert abs(np.mean(counts) - 0.25) <= 4 * np.std(counts) / np.sqrt(draws)


@given(rate=rates, duration=durations, seed=seeds)
def test_the_seed_decides_the_times(
    arrivals: Arrivals, rate: float, duration: float, seed: int
) -> None:
    first, second = (
        arrivals.due_seconds(rate, duration, np.random.default_rng(seed)) for _ in range(2)
    )
    assert np.array_equal(first, second)


def test_another_seed_draws_other_times(arrivals: Arrivals) -> None:
    first, second = (arrivals.due_seconds(50, 2, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(first, second)

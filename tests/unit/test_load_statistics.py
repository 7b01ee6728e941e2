"""What the samples of a level are worth, and what they prove."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.load.statistics import (
    ERROR_RATE,
    inflation_bound,
    late_verdict,
    variance_inflation,
    warmup_is_over,
    warmup_length,
)
from optimizer.load.stopping import LateFraction
from tests.sampling import sampled
from tests.unit.simulated_server import SimulatedServer, workload


def autoregressive(count: int, memory: float, seed: int) -> NDArray[np.float64]:
    """Each value is `memory` x the one before and noise: worth (1 - memory) / (1 + memory)."""
    noise = np.random.default_rng(seed).normal(size=count)
    values = np.empty(count)
    value = 0.0
    for at in range(count):
        value = memory * value + noise[at]
        values[at] = value
    return values


@pytest.mark.parametrize(("memory", "truth"), [(0.0, 1.0), (0.5, 3.0), (0.8, 9.0)])
def test_batch_means_find_what_a_correlated_sample_is_worth(memory: float, truth: float) -> None:
    found = [variance_inflation(autoregressive(4000, memory, seed)) for seed in range(30)]
    assert np.mean(found) == pytest.approx(truth, rel=0.25)


def test_the_bound_is_hardly_ever_below_the_truth() -> None:
    below = [inflation_bound(autoregressive(4000, 0.8, seed)) < 9.0 for seed in range(300)]
    assert sum(below) <= 10


def test_too_few_values_show_no_correlation() -> None:
    assert variance_inflation(np.arange(20.0)) == 1.0
    assert variance_inflation(np.full(400, 3.0)) == 1.0


def test_a_transient_is_cut_off_and_noise_is_not() -> None:
    rng = np.random.default_rng(1)
    steady = rng.exponential(size=600)
    cold = steady + np.where(np.arange(600) < 100, 20.0, 0.0)
    assert warmup_length(steady) == 0
    assert 100 <= warmup_length(cold) < 300
    assert warmup_is_over(steady)
    assert warmup_is_over(cold)
    assert not warmup_is_over(steady + np.arange(600) / 10)


@pytest.mark.parametrize(
    ("late", "of", "verdict"),
    [(0, 20, None), (0, 400, "feasible"), (20, 400, None), (60, 400, "infeasible")],
)
def test_a_verdict_needs_evidence(late: int, of: int, verdict: str | None) -> None:
    seen = np.zeros(of, dtype=bool)
    seen[:late] = True
    assert late_verdict(seen, 1.0, allowed=0.05) == verdict
    assert late_verdict(seen, 20.0, allowed=0.05) is None


@given(late=st.lists(st.booleans(), max_size=60), inflation=st.floats(1, 10))
def test_no_more_evidence_comes_from_samples_that_are_worth_less(
    late: list[bool], inflation: float
) -> None:
    seen = np.array(late, dtype=bool)
    if late_verdict(seen, inflation, 0.05) is not None:
        assert late_verdict(seen, 1.0, 0.05) == late_verdict(seen, inflation, 0.05)


def test_however_often_it_is_asked_it_is_wrong_no_more_often_than_it_says() -> None:
    wrong = 0
    for seed in range(400):
        late = np.random.default_rng(seed).random(500) < 0.05
        looks = (late_verdict(late[:seen], 1.0, 0.05) for seen in range(20, 501, 20))
        wrong += any(verdict is not None for verdict in looks)
    assert wrong <= 2 * ERROR_RATE * 400


SERVERS = {
    "M/D/1": SimulatedServer(workload(1), instances=1, batch_seconds=0.002),
    "M/D/4": SimulatedServer(workload(1), instances=4, batch_seconds=0.006),
    "batches of 16": SimulatedServer(
        workload(1), instances=1, max_batch=16, batch_seconds=0.010, request_seconds=0.001
    ),
}


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("past", "most", "share", "name"),
    sampled(
        [
            (*p, share, name)
            for p in ((1.05, 20), (1.2, 0))
            for share in (0.6, 0.8)
            for name in SERVERS
        ],
        every=8,
    ),
)
def test_a_level_over_the_limit_is_hardly_ever_called_feasible(
    past: float, most: int, share: float, name: str
) -> None:
    """400 levels whose true 95th percentile is 5 %, or 20 %, above the limit."""
    server = SERVERS[name]
    rate = share * server.saturation_per_second
    gaps = np.random.default_rng(0).exponential(size=400_000) / rate
    due, done = server.serve(np.cumsum(gaps))
    work = workload(float(np.percentile(done - due, 95)) * 1e3 / past)
    stop = LateFraction(work.streams, warmup_seconds=1.0, least_seconds=4.0)
    plan = LevelPlan(OpenLoop(rate / work.demand_per_second), 1.0, 8.0, 10.0, stop=stop)
    wrong = 0
    for seed in range(400):
        level = replace(server, work=work, rng=np.random.default_rng(seed), plans=[])(plan)
        wrong += level.verdict == "feasible"
    assert wrong <= most

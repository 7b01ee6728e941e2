import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from optimizer.configuration.serving_config import QueuePolicy
from optimizer.simulator.batcher import Scheduler, Shapes
from optimizer.simulator.network import one_batcher
from optimizer.simulator.prediction import (
    OfferedStream,
    predict_capacity,
    predict_level,
    predict_saturation,
)
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.streams import LatencyLimit
from tests.unit.test_simulator_queues import waiting_probability

ALONE = Scheduler(1, dynamic=False)
SINGLE = one_batcher(ALONE, ServiceCurve((1,), (10.0,)))
CURVE = ServiceCurve((1, 16), (4.0, 16.0), spread=0.1, busy_factors=(0.7, 1.0), outside_ms=0.5)
BATCHED = one_batcher(Scheduler(16, (4, 8), 1000, instances=2), CURVE)


def poisson(limit: LatencyLimit) -> list[OfferedStream]:
    return [OfferedStream("poisson", limit)]


def constant(limit: LatencyLimit) -> list[OfferedStream]:
    return [OfferedStream("constant", limit)]


def test_saturated_instances_execute_without_a_break() -> None:
    found = predict_saturation(SINGLE, 8, seed=1)
    assert found.per_second == pytest.approx(100)
    assert found.batches.keys() == {1}


def test_saturation_without_preference_fills_the_largest_batches() -> None:
    found = predict_saturation(one_batcher(Scheduler(16, instances=2), CURVE), 64, seed=1)
    assert found.batches.keys() == {16}
    # The mean of so many factors of noise is within a few standard errors of 1.
    assert found.per_second == pytest.approx(2 * 16 / 16e-3, rel=0.05)


def test_saturation_with_preferred_sizes_makes_batches_between_them_and_the_largest() -> None:
    found = predict_saturation(BATCHED, 64, seed=1)
    executions = sum(found.batches.values())
    assert 8 <= sum(size * n for size, n in found.batches.items()) / executions <= 16
    assert found.per_second < 2 * 16 / 16e-3 * 1.05


def test_constant_arrivals_below_saturation_do_not_wait() -> None:
    found = predict_level(SINGLE, "constant", 80, seed=1)
    assert found.latency_ms(99) == pytest.approx(10)
    assert found.mean_queue_ms == pytest.approx(0)
    assert found.utilisation == pytest.approx(0.8, rel=0.01)
    assert found.achieved_per_second == pytest.approx(80, rel=0.01)
    assert found.batches.keys() == {1}


def test_latency_at_a_level_is_that_of_the_queue() -> None:
    found = predict_level(SINGLE, "poisson", 70, seed=1, requests=400_000, percentiles=(90.0,))
    exact = optimize.brentq(lambda wait: waiting_probability(wait, 0.7) - 0.9, 1e-9, 20)
    assert found.latency_ms(90) == pytest.approx(10 + 10 * exact, rel=0.02)
    assert found.offered_per_second == 70


def test_more_than_saturation_is_not_achieved() -> None:
    found = predict_level(SINGLE, "poisson", 150, seed=1)
    assert found.achieved_per_second == pytest.approx(100, rel=0.01)
    assert found.utilisation == pytest.approx(1)


def test_bursts_of_a_recording_wait() -> None:
    trace = ArrivalTrace("0" * 64, tuple(0.001 * k for k in range(10)), seconds=1.0)
    found = predict_level(SINGLE, trace, 50, seed=1, percentiles=(50.0, 99.0))
    # Ten requests within 0.2 ms, five times a second; the last waits for nine others.
    assert found.latency_ms(99) == pytest.approx(98.2, abs=0.1)


def test_what_is_refused_has_a_share_and_no_latency() -> None:
    bounded = Scheduler(1, policy=QueuePolicy(max_queue_size=1))
    found = predict_level(one_batcher(bounded, ServiceCurve((1,), (10.0,))), "poisson", 200, seed=1)
    # One in service and one waiting: the loss of M/D/1/2 at twice the load that can be served.
    assert found.refused_share == pytest.approx(1 - 1 / (2 + math.exp(-2)), abs=0.02)
    assert found.latency_ms(99) < 20.001


def test_what_is_refused_has_missed_the_limit() -> None:
    """The loss of M/D/1/2 is 5 % at 46 requests/s; those that are served wait 10 ms at most."""
    bounded = Scheduler(1, policy=QueuePolicy(max_queue_size=1))
    serving = one_batcher(bounded, ServiceCurve((1,), (10.0,)))
    limit = LatencyLimit(95, 50)
    found = predict_capacity(serving, (OfferedStream("poisson", limit),), 2, 1, requests=40_000)
    offered = optimize.brentq(lambda load: 1 - 1 / (load + math.exp(-load)) - 0.05, 0.1, 0.9)
    assert found.per_second == pytest.approx(100 * offered, rel=0.05)


def test_where_all_is_refused_nothing_is_served() -> None:
    """Requests wait for others longer than they may."""
    hasty = Scheduler(8, (), 5000, policy=QueuePolicy(timeout_us=1000))
    serving = one_batcher(hasty, ServiceCurve((1,), (10.0,)))
    found = predict_level(serving, "constant", 50, seed=1, requests=100)
    assert found.refused_share == 1
    assert found.latency_ms(50) == found.mean_queue_ms == math.inf
    none = predict_capacity(serving, constant(LatencyLimit(95, 100)), 2, seed=1, requests=100)
    assert (none.per_second, none.saturation.batches) == (0, {})


def test_longer_shapes_take_longer() -> None:
    mixed = one_batcher(ALONE, ServiceCurve((1,), (10.0,)), Shapes((1.0, 1.0), (0.5, 1.5)))
    assert predict_saturation(mixed, 8, seed=1).per_second == pytest.approx(100, rel=0.05)
    found = predict_level(mixed, "constant", 20, seed=1, percentiles=(25.0, 75.0))
    assert [ms for _, ms in found.latencies_ms] == pytest.approx([5, 15])


def test_a_percentile_that_was_not_asked_for_is_unknown() -> None:
    with pytest.raises(KeyError):
        predict_level(SINGLE, "poisson", 50, seed=1).latency_ms(42)


def test_capacity_is_where_the_percentile_of_the_queue_reaches_the_limit() -> None:
    found = predict_capacity(SINGLE, poisson(LatencyLimit(95, 40)), 8, seed=1, requests=400_000)
    exact = optimize.brentq(lambda load: waiting_probability(3, load) - 0.95, 0.1, 0.94)
    assert found.per_second == pytest.approx(100 * exact, rel=0.02)


def test_capacity_is_at_most_a_share_of_saturation() -> None:
    found = predict_capacity(SINGLE, poisson(LatencyLimit(95, 1e4)), 8, seed=1)
    assert found.per_second == pytest.approx(95)


def test_there_is_no_capacity_where_the_floor_load_misses_the_limit() -> None:
    found = predict_capacity(SINGLE, poisson(LatencyLimit(50, 9)), 8, seed=1)
    assert found.per_second == 0
    assert 9 * math.exp(found.floor_log_excess) == pytest.approx(10)


def test_a_server_slower_than_the_floor_load_serves_a_share_of_saturation_or_nothing() -> None:
    slow = one_batcher(ALONE, ServiceCurve((1,), (2000.0,)))
    found = predict_capacity(slow, constant(LatencyLimit(50, 1e9)), 8, seed=1, requests=100)
    assert found.per_second == pytest.approx(0.95 * 0.5)


def test_the_same_seed_predicts_the_same() -> None:
    limit = LatencyLimit(95, 30)
    first, second, other = (
        predict_capacity(BATCHED, poisson(limit), 64, seed) for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@settings(max_examples=30, deadline=None)
@given(
    most=st.sampled_from([1, 4, 16]),
    delay_us=st.sampled_from([0, 500, 3000]),
    instances=st.integers(1, 2),
    limit_ms=st.floats(3, 200),
)
def test_a_capacity_meets_its_limit_and_a_little_more_does_not(
    most: int, delay_us: int, instances: int, limit_ms: float
) -> None:
    serving = one_batcher(Scheduler(most, (), delay_us, instances=instances), CURVE)
    limit = LatencyLimit(95, limit_ms)
    found = predict_capacity(serving, poisson(limit), 4 * most, seed=1)
    assert (found.per_second == 0) == (found.floor_log_excess > 0)
    if found.per_second == 0:
        return
    saturated = found.saturation.per_second

    def latency_ms(rate: float) -> float:
        return predict_level(serving, "poisson", rate, seed=1).latency_ms(95)

    floor = max(1.0, 0.05 * saturated)
    assert latency_ms(max(floor, found.per_second - 0.02 * saturated)) <= limit_ms * 1.02
    if found.per_second < 0.949 * saturated:
        assert latency_ms(found.per_second + 0.02 * saturated) > limit_ms * 0.98
    assert math.isfinite(found.floor_log_excess)

"""Long simulations against queues whose waiting times are known exactly, within 2 %."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, stats

from optimizer.simulator.batcher import ONE_SHAPE, Scheduler, Simulation, draw, open_loop
from optimizer.simulator.service_curve import ServiceCurve

REQUESTS = 1_000_000
STATES = 400


def poisson_arrivals(
    scheduler: Scheduler, curve: ServiceCurve, per_ms: float, requests: int = REQUESTS
) -> Simulation:
    rng = np.random.default_rng(20)
    arrive = np.sort(rng.random(requests)) * (requests / per_ms)
    return open_loop(scheduler, curve, arrive, draw(requests, curve.spread, ONE_SHAPE, rng))


def constant(service_ms: float, instances: int = 1, spread: float = 0.0) -> ServiceCurve:
    return ServiceCurve((1, 64), (service_ms, service_ms), spread, (1.0,) * instances)


def waiting_probability(wait: float, load: float) -> float:
    """P(wait <= `wait` services) in M/D/1 (Erlang 1909)."""
    terms = [
        (load * (k - wait)) ** k / math.factorial(k) * math.exp(-load * (k - wait))
        for k in range(math.floor(wait) + 1)
    ]
    return (1 - load) * math.fsum(terms)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.85])
def test_mean_wait_with_one_instance_of_constant_time(load: float) -> None:
    found = poisson_arrivals(Scheduler(1, dynamic=False), constant(3.0), load / 3)
    assert found.queue_ms.mean() == pytest.approx(3 * load / (2 * (1 - load)), rel=0.02)


@pytest.mark.parametrize("percentile", [50, 95, 99])
def test_percentiles_of_the_wait_with_one_instance_of_constant_time(percentile: float) -> None:
    load = 0.7
    found = poisson_arrivals(Scheduler(1, dynamic=False), constant(1.0), load)
    exact = optimize.brentq(
        lambda wait: waiting_probability(wait, load) - percentile / 100, 1e-9, 20
    )
    assert np.percentile(found.queue_ms, percentile) == pytest.approx(exact, rel=0.02)


def stationary(transitions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stationary distribution of a Markov chain, its rows made whole after truncation."""
    matrix = transitions / transitions.sum(axis=1, keepdims=True)
    equations = np.vstack([matrix.T - np.eye(len(matrix)), np.ones(len(matrix))])
    right = np.zeros(len(matrix) + 1)
    right[-1] = 1
    found: NDArray[np.float64] = np.linalg.lstsq(equations, right, rcond=None)[0]
    return found


@pytest.mark.parametrize(("instances", "load"), [(2, 0.8), (4, 0.7), (8, 0.8)])
def test_mean_wait_with_several_instances_of_constant_time(instances: int, load: float) -> None:
    """One service later, all who were in service have left (Crommelin 1932)."""
    per_ms = instances * load
    left = np.maximum(np.arange(STATES) - instances, 0)
    arrivals = np.arange(STATES)[None, :] - left[:, None]
    present = stationary(stats.poisson.pmf(arrivals, per_ms))
    queued = present @ left
    scheduler = Scheduler(1, dynamic=False, instances=instances)
    found = poisson_arrivals(scheduler, constant(1.0, instances), per_ms)
    assert found.queue_ms.mean() == pytest.approx(queued / per_ms, rel=0.02)


def test_mean_wait_with_the_batcher_that_may_not_merge() -> None:
    """Batches of one are the same queue, with or without prefetching."""
    for prefetch in (True, False):
        scheduler = Scheduler(1, prefetch=prefetch)
        found = poisson_arrivals(scheduler, constant(1.0), 0.7, 300_000)
        assert found.queue_ms.mean() == pytest.approx(0.7 / 0.6, rel=0.02)


def test_exponential_times_wait_and_stay_as_in_the_queue_named_after_them() -> None:
    found = poisson_arrivals(Scheduler(1, dynamic=False), constant(1.0, spread=1.0), 0.7)
    assert found.queue_ms.mean() == pytest.approx(0.7 / 0.3, rel=0.02)
    assert np.percentile(found.latency_ms, 95) == pytest.approx(math.log(20) / 0.3, rel=0.02)


@pytest.mark.parametrize("spread", [0.2, 0.6])
def test_mean_wait_grows_with_the_variance_of_the_service_time(spread: float) -> None:
    """Pollaczek and Khinchine."""
    found = poisson_arrivals(Scheduler(1, dynamic=False), constant(1.0, spread=spread), 0.7)
    assert found.queue_ms.mean() == pytest.approx(0.7 * (1 + spread**2) / 0.6, rel=0.02)


def bulk_queue_mean_wait(service_ms: NDArray[np.float64], per_ms: float) -> float:
    """Mean wait where a server takes all that wait, at most the largest batch; exact.

    The numbers left behind at the ends of services are a Markov chain (Bailey 1954); the mean
    queue over time follows from what waits during a service, and Little's law gives the wait.

    Args:
        service_ms: of a batch of k in element k.
    """
    most = len(service_ms) - 1
    states = np.arange(STATES)
    taken = np.clip(states, 1, most)
    remain = np.maximum(states - most, 0)
    service = service_ms[taken]
    arrivals = states[None, :] - remain[:, None]
    left = stationary(stats.poisson.pmf(arrivals, (per_ms * service)[:, None]))
    area = left @ (remain * service + per_ms * service**2 / 2)
    length = left @ service + left[0] / per_ms
    return float(area / length / per_ms)


CURVE = ServiceCurve((1, 2, 8), (2.0, 2.6, 6.0))


@pytest.mark.parametrize("most", [2, 8])
@pytest.mark.parametrize("load", [0.4, 0.8, 0.93])
def test_mean_wait_of_batches_of_whatever_is_there(most: int, load: float) -> None:
    service_ms = CURVE.table_ms(most)
    per_ms = load * most / service_ms[most]
    found = poisson_arrivals(Scheduler(most), CURVE, per_ms)
    assert found.queue_ms.mean() == pytest.approx(
        bulk_queue_mean_wait(service_ms, per_ms), rel=0.02
    )


def test_with_one_instance_and_no_delay_prefetching_to_the_largest_size_changes_nothing() -> None:
    ahead = poisson_arrivals(Scheduler(8), CURVE, 0.9, 50_000)
    not_ahead = poisson_arrivals(Scheduler(8, prefetch=False), CURVE, 0.9, 50_000)
    np.testing.assert_array_equal(ahead.done_ms, not_ahead.done_ms)

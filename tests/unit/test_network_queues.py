"""Long simulations of networks against queues whose times are known exactly, within 2 %."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import optimize, sparse
from scipy.sparse.linalg import spsolve

from optimizer.simulator.batcher import Scheduler
from optimizer.simulator.network import Batcher, Contention, Network, NetworkCall, NetworkSource
from optimizer.simulator.network_simulation import NetworkSimulation, network_open_loop
from optimizer.simulator.service_curve import ServiceCurve

REQUESTS = 600_000
STATES = 40


def queue(service_ms: float, instances: int = 1, spread: float = 1.0) -> Batcher:
    curve = ServiceCurve((1, 2), (service_ms, service_ms), spread, (1.0,) * instances)
    return Batcher("m", Scheduler(1, dynamic=False, instances=instances), curve)


def poisson(network: Network, per_ms: float, mix: tuple[float, ...] = ()) -> NetworkSimulation:
    rng = np.random.default_rng(5)
    arrive = np.sort(rng.random(REQUESTS)) * (REQUESTS / per_ms)
    shares = np.array(mix or [1.0] * len(network.sources))
    sources = rng.choice(len(shares), size=REQUESTS, p=shares / shares.sum())
    return network_open_loop(network, arrive, network.draw(sources, rng))


def tandem(*queues: Batcher) -> Network:
    calls = tuple(NetworkCall(n, (n - 1,) if n else ()) for n in range(len(queues)))
    return Network(queues, (NetworkSource(calls),))


def waits(service_ms: float, instances: int, per_ms: float) -> tuple[float, float]:
    """Erlang C: the probability of a wait, and the rate at which waits end (1/ms)."""
    load = service_ms * per_ms
    terms = [load**k / math.factorial(k) for k in range(instances)]
    last = load**instances / math.factorial(instances) * instances / (instances - load)
    return last / (sum(terms) + last), instances / service_ms - per_ms


@pytest.mark.parametrize(
    "stages", [((1.0, 1), (1.0, 1)), ((1.0, 1), (1.9, 2), (2.6, 3)), ((2.0, 3), (0.7, 1), (1.5, 2))]
)
def test_mean_time_in_a_tandem_is_the_sum_of_its_queues(
    stages: tuple[tuple[float, int], ...],
) -> None:
    """Burke 1956: what leaves M/M/c is Poisson, so each stage is M/M/c by itself."""
    simulated = poisson(tandem(*(queue(ms, n) for ms, n in stages)), 0.7)
    expected = 0.0
    for own, (ms, n) in zip(simulated.batchers, stages, strict=True):
        probability, rate = waits(ms, n, 0.7)
        stage = probability / rate + ms
        assert (own.done_ms - own.arrive_ms).mean() == pytest.approx(stage, rel=0.02)
        expected += stage
    assert simulated.latency_ms.mean() == pytest.approx(expected, rel=0.02)


def test_95th_percentile_in_a_tandem_of_single_servers() -> None:
    """Reich 1957: times in M/M/1 queues in tandem are independent, here two of one rate."""
    simulated = poisson(tandem(queue(1.0), queue(1.0)), 0.7)
    exact = optimize.brentq(lambda t: (1 + 0.3 * t) * math.exp(-0.3 * t) - 0.05, 1, 100)
    assert np.percentile(simulated.latency_ms, 95) == pytest.approx(exact, rel=0.02)


def sojourn(
    service_ms: float, instances: int, per_ms: float, grid: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Density of the time in M/M/c on a grid of ms."""
    probability, rate = waits(service_ms, instances, per_ms)
    mu = 1 / service_ms
    served = mu * np.exp(-mu * grid)
    both = mu * rate / (rate - mu) * (np.exp(-mu * grid) - np.exp(-rate * grid))
    return np.asarray((1 - probability) * served + probability * both)


@pytest.mark.slow
def test_95th_percentile_in_a_tandem_of_several_servers() -> None:
    """Burke 1969: the times in the first and the last of three are independent of the others."""
    stages = ((1.9, 2), (1.0, 1), (2.6, 3))
    simulated = poisson(tandem(*(queue(ms, n) for ms, n in stages)), 0.7)
    step = 0.01
    grid = np.arange(0, 120, step) + step / 2
    density = sojourn(*stages[0], 0.7, grid)
    for ms, n in stages[1:]:
        other = 0.3 * np.exp(-0.3 * grid) if n == 1 else sojourn(ms, n, 0.7, grid)
        density = np.convolve(density, other)[: len(grid)] * step
    exact = grid[np.searchsorted(np.cumsum(density) * step, 0.95)]
    assert np.percentile(simulated.latency_ms, 95) == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_mean_time_of_a_fork_into_two_single_servers(load: float) -> None:
    """Nelson and Tantawi 1988, exact for two: (12 - load) / 8 times that of one server."""
    network = Network((queue(1.0), queue(1.0)), (NetworkSource((NetworkCall(0), NetworkCall(1))),))
    expected = (12 - load) / 8 / (1 - load)
    assert poisson(network, load).latency_ms.mean() == pytest.approx(expected, rel=0.02)


def test_mean_wait_of_a_composed_model_is_that_of_the_sum_of_its_times() -> None:
    """Pollaczek and Khinchine: its one instance is occupied for its own time and its steps'."""
    top = Batcher(
        "top",
        Scheduler(1, dynamic=False),
        ServiceCurve((1, 2), (0.5, 0.5), 0.5),
        (NetworkCall(1), NetworkCall(2, (0,))),
    )
    network = Network((top, queue(0.3), queue(0.2)), (NetworkSource((NetworkCall(0),)),))
    variance = 0.25**2 + 0.3**2 + 0.2**2
    waits_ms = poisson(network, 0.7).batchers[0].queue_ms
    assert waits_ms.mean() == pytest.approx(0.7 * (1 + variance) / (2 * 0.3), rel=0.02)


def test_time_of_models_that_slow_each_other_down_is_that_of_the_markov_chain() -> None:
    """Two M/M/1 queues whose rates fall while the other one is busy."""
    rates, slow = np.array([0.3, 0.5]), np.array([1.6, 1.3])
    queues = (queue(1.0), queue(1.0))
    pairs = ((0.0, math.log(slow[0])), (math.log(slow[1]), 0.0))
    sources = (NetworkSource((NetworkCall(0),)), NetworkSource((NetworkCall(1),)))
    simulated = poisson(Network(queues, sources, Contention(pairs)), 0.8, tuple(rates))
    transitions = np.zeros((STATES, STATES, STATES, STATES))
    for i, j in np.ndindex(STATES, STATES):
        transitions[i, j, min(i + 1, STATES - 1), j] += rates[0]
        transitions[i, j, i, min(j + 1, STATES - 1)] += rates[1]
        transitions[i, j, max(i - 1, 0), j] += 1 / (slow[0] if j else 1)
        transitions[i, j, i, max(j - 1, 0)] += 1 / (slow[1] if i else 1)
    present = stationary(transitions.reshape(STATES**2, STATES**2))
    for n, counts in enumerate(np.indices((STATES, STATES)).reshape(2, -1)):
        own = simulated.latency_ms[simulated.source == n].mean()
        assert own == pytest.approx(float(present @ counts) / rates[n], rel=0.02)


def stationary(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """Stationary distribution of a Markov chain by its transition rates."""
    equations = sparse.csr_matrix(rates.T - np.diag(rates.sum(axis=1))).tolil()
    equations[0, :] = 1.0
    right = np.zeros(len(rates))
    right[0] = 1.0
    return np.asarray(spsolve(equations.tocsr(), right))

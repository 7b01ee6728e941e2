"""Networks of batchers: timelines worked out by hand, and one batcher as a network of one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.configuration.serving_config import QueuePolicy
from optimizer.simulator.batcher import (
    Draws,
    Scheduler,
    Shapes,
    closed_loop,
    open_loop,
)
from optimizer.simulator.network import Batcher, Contention, Network, NetworkCall, NetworkSource
from optimizer.simulator.network_simulation import (
    NetworkSimulation,
    network_closed_loop,
    network_open_loop,
)
from optimizer.simulator.service_curve import ServiceCurve
from tests.unit.test_simulator_invariants import curves, gaps_ms, policies, schedulers

ALONE = Scheduler(1, dynamic=False)


def constant(ms: float, instances: int = 1) -> ServiceCurve:
    return ServiceCurve((1, 64), (ms, ms), busy_factors=(1.0,) * instances)


def batcher(name: str, ms: float, scheduler: Scheduler = ALONE) -> Batcher:
    return Batcher(name, scheduler, constant(ms, scheduler.instances))


def chain(*batchers: Batcher) -> Network:
    calls = tuple(NetworkCall(n, (n - 1,) if n else ()) for n in range(len(batchers)))
    return Network(batchers, (NetworkSource(calls),))


def simulate(
    network: Network, arrive_ms: list[float], sources: list[int] | None = None
) -> NetworkSimulation:
    source = np.array(sources or [0] * len(arrive_ms))
    draws = network.draw(source, np.random.default_rng(0))
    return network_open_loop(network, np.array(arrive_ms), draws)


@settings(max_examples=400, deadline=None)
@given(
    scheduler=schedulers(), policy=policies, dynamic=st.booleans(), curve=curves(), gaps=gaps_ms,
    concurrency=st.integers(1, 30), looped=st.booleans(),
)  # fmt: skip
def test_a_network_of_one_batcher_is_that_batcher(
    scheduler: Scheduler,
    policy: QueuePolicy,
    dynamic: bool,
    curve: ServiceCurve,
    gaps: list[float],
    concurrency: int,
    looped: bool,
) -> None:
    scheduler = replace(scheduler, policy=policy if dynamic else QueuePolicy(), dynamic=dynamic)
    source = NetworkSource((NetworkCall(0),), Shapes((2.0, 1.0), (1.0, 0.5)))
    network = Network((Batcher("m", scheduler, curve),), (source,), outside_ms=curve.outside_ms)
    drawn = network.draw(np.zeros(len(gaps), dtype=np.int64), np.random.default_rng(1))
    alone = Draws(drawn.noise[0], drawn.shape, np.array([1.0, 0.5]))
    if looped:
        expected = closed_loop(scheduler, curve, concurrency, alone)
        simulated = network_closed_loop(network, concurrency, drawn)
    else:
        expected = open_loop(scheduler, curve, np.cumsum(gaps), alone)
        simulated = network_open_loop(network, np.cumsum(gaps), drawn)
    own = simulated.batchers[0]
    for name in ("arrive_ms", "done_ms", "refused", "latency_ms"):
        np.testing.assert_array_equal(getattr(simulated, name), getattr(expected, name))
    for name in ("begin_ms", "execution_begin_ms", "execution_ms", "execution_size"):
        np.testing.assert_array_equal(getattr(own, name), getattr(expected, name))


def test_a_step_begins_when_the_one_before_has_answered() -> None:
    simulated = simulate(chain(batcher("a", 10), batcher("b", 4)), [0, 1])
    assert simulated.done_ms.tolist() == [14, 24]
    assert [own.execution_begin_ms.tolist() for own in simulated.batchers] == [[0, 10], [10, 20]]


def test_replies_of_a_batch_reach_the_next_step_one_after_another() -> None:
    """The first of four begins at once; the others make a batch behind it."""
    first = batcher("a", 10, Scheduler(8, max_queue_delay_us=3000))
    simulated = simulate(chain(first, batcher("b", 5, Scheduler(8))), [0, 0, 0, 0])
    assert simulated.batchers[0].execution_size.tolist() == [4]
    assert simulated.batchers[1].execution_size.tolist() == [1, 3]
    assert simulated.done_ms.tolist() == [18, 23, 23, 23]


def test_steps_that_wait_for_nothing_run_at_once_and_a_join_waits_for_both() -> None:
    calls = (NetworkCall(0), NetworkCall(1), NetworkCall(2, (0, 1)))
    network = Network((batcher("a", 10), batcher("b", 4), batcher("c", 1)), (NetworkSource(calls),))
    simulated = simulate(network, [0])
    assert [own.execution_begin_ms.tolist() for own in simulated.batchers] == [[0], [0], [10]]
    assert simulated.done_ms.tolist() == [11]


def test_two_steps_may_call_one_model_which_has_one_queue() -> None:
    calls = (NetworkCall(0), NetworkCall(1, (0,)), NetworkCall(0, (1,)))
    simulated = simulate(
        Network((batcher("a", 10), batcher("b", 4)), (NetworkSource(calls),)), [0, 1]
    )
    # The second request waits for the first at a, and the first for the second.
    assert simulated.batchers[0].execution_begin_ms.tolist() == [0, 10, 20, 30]
    assert simulated.done_ms.tolist() == [30, 40]


def test_a_composed_model_occupies_its_instance_while_its_steps_run() -> None:
    top = replace(batcher("top", 2), calls=(NetworkCall(1), NetworkCall(2, (0,))))
    network = Network((top, batcher("a", 5), batcher("b", 3)), (NetworkSource((NetworkCall(0),)),))
    simulated = simulate(network, [0, 1])
    assert simulated.done_ms.tolist() == [10, 20]
    assert simulated.batchers[0].execution_ms.tolist() == [10, 10]
    two = replace(top, scheduler=replace(ALONE, instances=2), curve=constant(2, 2))
    simulated = simulate(replace(network, batchers=(two, *network.batchers[1:])), [0, 1])
    # The second waits at a from 3 to 7 alone.
    assert simulated.done_ms.tolist() == [10, 15]


def test_requests_of_a_composed_models_batch_call_one_after_another() -> None:
    top = replace(batcher("top", 2, Scheduler(4, max_queue_delay_us=1000)), calls=(NetworkCall(1),))
    network = Network((top, batcher("a", 5, Scheduler(4))), (NetworkSource((NetworkCall(0),)),))
    simulated = simulate(network, [0, 0])
    assert simulated.batchers[1].execution_begin_ms.tolist() == [3, 8]
    assert simulated.done_ms.tolist() == [13, 13]


def test_composed_models_may_call_composed_models() -> None:
    top = replace(batcher("top", 1), calls=(NetworkCall(1, count=2.0),))
    middle = replace(batcher("middle", 1), calls=(NetworkCall(2),))
    network = Network((top, middle, batcher("a", 5)), (NetworkSource((NetworkCall(0),)),))
    assert simulate(network, [0]).done_ms.tolist() == [13]
    assert network.visits == ((1.0, 2.0, 2.0),)


def test_a_call_is_repeated_and_a_fraction_of_requests_makes_one_more() -> None:
    calls = (NetworkCall(0, count=2.25), NetworkCall(1, (0,), count=0.0))
    network = Network((batcher("a", 1), batcher("b", 9)), (NetworkSource(calls),))
    simulated = simulate(network, (100.0 * np.arange(4000)).tolist())
    took = simulated.done_ms - simulated.arrive_ms
    assert set(np.round(took, 6)) == {2.0, 3.0}
    assert np.mean(took == 3) == pytest.approx(0.25, abs=0.02)
    assert len(simulated.batchers[1].execution_ms) == 0


def test_several_sources_meet_at_what_they_share() -> None:
    sources = tuple(NetworkSource((NetworkCall(n), NetworkCall(2, (0,)))) for n in range(2))
    network = Network((batcher("a", 4), batcher("b", 5), batcher("shared", 10)), sources)
    simulated = simulate(network, [0, 0], [0, 1])
    assert simulated.done_ms.tolist() == [14, 24]
    assert simulated.source.tolist() == [0, 1]


def test_what_a_step_refuses_is_refused_and_goes_no_further() -> None:
    bounded = Scheduler(1, policy=QueuePolicy(max_queue_size=1))
    network = chain(batcher("a", 1), batcher("b", 10, bounded), batcher("c", 1))
    simulated = simulate(network, [0, 1, 2])
    assert simulated.refused.tolist() == [False, False, True]
    assert simulated.done_ms.tolist() == [12, 22, 3]
    assert len(simulated.batchers[2].execution_ms) == 2
    top = replace(batcher("top", 0.5), calls=(NetworkCall(1),))
    sources = (NetworkSource((NetworkCall(0),)), NetworkSource((NetworkCall(1),)))
    composed = Network((top, network.batchers[1]), sources)
    # Two of the other source are in service and in the queue when the composed model calls.
    assert simulate(composed, [0, 0, 1], [1, 1, 0]).refused.tolist() == [False, False, True]


def test_executions_slow_each_other_down_while_both_run() -> None:
    sources = (NetworkSource((NetworkCall(0),)), NetworkSource((NetworkCall(1),)))
    contention = Contention(((0.0, math.log(2)), (math.log(4), 0.0)))
    network = Network((batcher("a", 10), batcher("b", 10)), sources, contention)
    simulated = simulate(network, [0, 4], [0, 1])
    # At 4 a has 6 ms left, which take 12; b has done a quarter of that, 3 ms of its 10.
    np.testing.assert_allclose(simulated.done_ms, [16, 23])
    np.testing.assert_allclose(simulated.batchers[0].execution_ms, [16])


def test_a_composed_model_that_waits_slows_nothing_down() -> None:
    top = replace(batcher("top", 2), calls=(NetworkCall(1),))
    pairs = ((0.0, 0.0), (math.log(2.0), 0.0))
    network = Network(
        (top, batcher("a", 5)), (NetworkSource((NetworkCall(0),)),), Contention(pairs)
    )
    assert simulate(network, [0]).done_ms.tolist() == [7]


@settings(max_examples=100, deadline=None)
@given(
    gaps=gaps_ms, one=schedulers(), two=schedulers(), curve=curves(), policy=policies,
    pressure=st.floats(0, 1), count=st.sampled_from([0.5, 1.0, 1.7]),
)  # fmt: skip
def test_every_request_is_answered_once(
    gaps: list[float],
    one: Scheduler,
    two: Scheduler,
    curve: ServiceCurve,
    policy: QueuePolicy,
    pressure: float,
    count: float,
) -> None:
    calls = (NetworkCall(1, count=count),)
    batchers = (
        Batcher("top", one, curve, calls),
        Batcher("step", replace(two, policy=policy), curve),
    )
    sources = (
        NetworkSource((NetworkCall(0), NetworkCall(1, (0,)))),
        NetworkSource((NetworkCall(1),)),
    )
    contention = Contention(((0.0, pressure), (pressure / 2, 0.0)))
    network = Network(batchers, sources, contention, outside_ms=0.5)
    draws = network.draw(np.arange(len(gaps)) % 3 // 2, np.random.default_rng(2))
    simulated = network_open_loop(network, np.cumsum(gaps), draws)
    assert np.isfinite(simulated.done_ms).all()
    assert (simulated.done_ms >= simulated.arrive_ms).all()
    assert policy.bounds or not simulated.refused.any()
    for own in simulated.batchers:
        assert own.execution_size.sum() == (~own.refused).sum() or policy.bounds
        assert (own.done_ms >= own.arrive_ms).all()
    again = network_open_loop(network, np.cumsum(gaps), draws)
    np.testing.assert_array_equal(again.done_ms, simulated.done_ms)


@pytest.mark.parametrize(
    ("calls", "message"),
    [
        ((NetworkCall(1),), "call 0 names batcher 1, there are 1"),
        ((NetworkCall(0, (1,)), NetworkCall(0, (0,))), r"calls \[0, 1\] wait for each other"),
    ],
)
def test_wrong_calls_are_refused(calls: tuple[NetworkCall, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Network((batcher("a", 1),), (NetworkSource(calls),))


def test_a_composed_model_that_calls_itself_is_refused() -> None:
    top = replace(batcher("top", 1), calls=(NetworkCall(0),))
    with pytest.raises(ValueError, match="a composed model calls itself"):
        Network((top,), (NetworkSource((NetworkCall(0),)),))

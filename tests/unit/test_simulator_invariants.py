"""What holds for every way of serving, and agreement with the batcher as it is documented."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from optimizer.configuration.serving_config import QueuePolicy
from optimizer.simulator.batcher import (
    Scheduler,
    Shapes,
    Simulation,
    closed_loop,
    draw,
    open_loop,
)
from optimizer.simulator.service_curve import ServiceCurve
from tests.unit.literal_batcher import LiteralBatcher


@st.composite
def schedulers(draw_from: st.DrawFn) -> Scheduler:
    most = draw_from(st.integers(1, 9))
    return Scheduler(
        max_batch_size=most,
        preferred_batch_sizes=tuple(draw_from(st.sets(st.integers(1, most), max_size=3))),
        max_queue_delay_us=draw_from(st.sampled_from([0, 0, 500, 3000, 20_000])),
        instances=draw_from(st.integers(1, 3)),
        prefetch=draw_from(st.booleans()),
        free_dimensions=draw_from(st.booleans()),
    )


policies = st.builds(
    QueuePolicy,
    st.integers(0, 5),
    st.sampled_from([0, 2000, 30_000]),
    st.sampled_from(["reject", "delay"]),
)
gaps_ms = st.lists(st.floats(0, 12) | st.sampled_from([0.0, 0.01]), min_size=1, max_size=60)


@st.composite
def curves(draw_from: st.DrawFn) -> ServiceCurve:
    one = draw_from(st.floats(0.5, 10))
    nine = draw_from(st.floats(one, 9 * one))
    busy = draw_from(st.floats(0.3, 1))
    spread = draw_from(st.sampled_from([0.0, 0.2]))
    return ServiceCurve((1, 9), (one, nine), spread, (busy, 1.0, 1.0), outside_ms=0.5)


def served(scheduler: Scheduler, curve: ServiceCurve, arrive: NDArray[np.float64]) -> Simulation:
    shapes = Shapes((2.0, 1.0), (1.0, 0.5)) if scheduler.free_dimensions else Shapes()
    draws = draw(len(arrive), curve.spread, shapes, np.random.default_rng(1))
    return open_loop(scheduler, curve, arrive, draws)


@settings(max_examples=500, deadline=None)
@given(
    scheduler=schedulers(),
    requests=st.lists(
        st.tuples(st.sampled_from([0.0, 0.25, 1.0, 4.0, 11.0]), st.integers(0, 1)),
        min_size=1,
        max_size=50,
    ),
    one_shape=st.booleans(),
)
def test_batches_are_those_of_the_batcher_as_it_is_documented(
    scheduler: Scheduler, requests: list[tuple[float, int]], one_shape: bool
) -> None:
    # Offsets tell requests apart and keep events from falling on one another.
    gaps, drawn = zip(*requests, strict=True)
    arrive = np.cumsum(gaps) + np.arange(len(gaps)) * 1e-3
    shapes = np.array(drawn, dtype=np.int32)
    if one_shape or not scheduler.free_dimensions:
        shapes[:] = 0
    literal = LiteralBatcher(scheduler, execution_ms=7.0001)
    literal.serve(arrive.tolist(), shapes.tolist())

    curve = ServiceCurve((1, 9), (7.0001, 7.0001), busy_factors=(1.0,) * 3)
    draws = draw(len(arrive), 0.0, Shapes(), np.random.default_rng(1))
    draws.shape[:] = shapes
    draws = type(draws)(draws.noise, draws.shape, np.ones(2))
    found = open_loop(scheduler, curve, arrive, draws)

    assert found.execution_size.tolist() == [len(batch) for _, batch in literal.executions]
    begins = {at: begin for begin, batch in literal.executions for at in batch}
    assert found.begin_ms.tolist() == [begins[at] for at in arrive.tolist()]


@settings(max_examples=300, deadline=None)
@given(scheduler=schedulers(), policy=policies, dynamic=st.booleans(), curve=curves(), gaps=gaps_ms)
def test_every_request_is_executed_once_or_refused(
    scheduler: Scheduler, policy: QueuePolicy, dynamic: bool, curve: ServiceCurve, gaps: list[float]
) -> None:
    scheduler = Scheduler(
        **{**vars(scheduler), "policy": policy if dynamic else QueuePolicy(), "dynamic": dynamic}
    )
    found = served(scheduler, curve, np.cumsum(gaps))
    good = ~found.refused
    assert found.execution_size.sum() == good.sum()
    assert found.execution_size.max(initial=0) <= scheduler.most_requests
    assert policy.bounds or good.all()
    assert np.isfinite(found.done_ms).all()
    assert (found.begin_ms[good] >= found.arrive_ms[good]).all()
    assert np.isin(found.begin_ms[good], found.execution_begin_ms).all()


@settings(max_examples=200, deadline=None)
@given(scheduler=schedulers(), curve=curves(), gaps=gaps_ms)
def test_a_request_waits_for_all_of_its_shape_that_came_before(
    scheduler: Scheduler, curve: ServiceCurve, gaps: list[float]
) -> None:
    found = served(scheduler, curve, np.cumsum(gaps))
    assert (np.diff(found.begin_ms) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(scheduler=schedulers(), curve=curves(), gaps=gaps_ms)
def test_latency_is_at_least_the_time_outside_and_in_execution(
    scheduler: Scheduler, curve: ServiceCurve, gaps: list[float]
) -> None:
    found = served(scheduler, curve, np.cumsum(gaps))
    shortest = curve.outside_ms + found.execution_ms.min()
    assert (found.latency_ms >= shortest - 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(scheduler=schedulers(), curve=curves(), gaps=gaps_ms)
def test_no_more_executions_run_at_once_than_there_are_instances(
    scheduler: Scheduler, curve: ServiceCurve, gaps: list[float]
) -> None:
    found = served(scheduler, curve, np.cumsum(gaps))
    begin, end = found.execution_begin_ms, found.execution_begin_ms + found.execution_ms
    running = [int(((begin <= at) & (end > at)).sum()) for at in begin]
    assert max(running) <= scheduler.instances


@settings(max_examples=100, deadline=None)
@given(scheduler=schedulers(), curve=curves(), gaps=gaps_ms)
def test_the_same_draws_give_the_same_result(
    scheduler: Scheduler, curve: ServiceCurve, gaps: list[float]
) -> None:
    arrive = np.cumsum(gaps)
    first, second = (served(scheduler, curve, arrive) for _ in range(2))
    np.testing.assert_array_equal(first.done_ms, second.done_ms)
    np.testing.assert_array_equal(first.execution_size, second.execution_size)


@settings(max_examples=200, deadline=None)
@given(scheduler=schedulers(), concurrency=st.integers(1, 40))
def test_no_more_is_served_than_all_instances_at_their_best(
    scheduler: Scheduler, concurrency: int
) -> None:
    curve = ServiceCurve((1, 4, 9), (2.0, 3.0, 12.0), busy_factors=(1.0,) * 3)
    draws = draw(300, 0.0, Shapes(), np.random.default_rng(1))
    found = closed_loop(scheduler, curve, concurrency, draws)
    best = max(size / curve.table_ms(9)[size] for size in range(1, scheduler.max_batch_size + 1))
    span_ms = found.done_ms.max() - found.arrive_ms[0]
    assert 300 / span_ms <= scheduler.instances * best * (1 + 1e-9)
    assert found.execution_size.sum() == 300

"""Timelines of a few requests, worked out by hand from how Triton's batcher is documented.

Every execution takes 10 ms whatever its size, unless a test says otherwise.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from optimizer.configuration.serving_config import (
    ArtifactSpec,
    Batching,
    InstanceGroup,
    ModelServing,
    QueuePolicy,
)
from optimizer.simulator.batcher import (
    Draws,
    Scheduler,
    Shapes,
    Simulation,
    closed_loop,
    open_loop,
    scheduler_of,
    shapes_of,
)
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.workload.request_sizes import Dimension, LengthDistribution, RequestFile
from optimizer.workload.streams import LatencyLimit, Payloads, Stream, TensorSpec

TEN_MS = ServiceCurve((1, 64), (10.0, 10.0), busy_factors=(1.0, 1.0, 1.0))


def simulate(
    scheduler: Scheduler,
    arrive_ms: list[float],
    shapes: list[int] | None = None,
    curve: ServiceCurve = TEN_MS,
) -> Simulation:
    shape = np.array(shapes or [0] * len(arrive_ms), dtype=np.int32)
    draws = Draws(np.ones(len(arrive_ms)), shape, np.ones(shape.max() + 1))
    return open_loop(scheduler, curve, np.array(arrive_ms), draws)


def timeline(
    scheduler: Scheduler, arrive_ms: list[float], shapes: list[int] | None = None
) -> list[tuple[float, int]]:
    """When each execution begins and how many inferences it holds."""
    done = simulate(scheduler, arrive_ms, shapes)
    begin = done.execution_begin_ms.tolist()
    return list(zip(begin, done.execution_size.tolist(), strict=True))


def test_without_dynamic_batching_each_request_is_executed_alone_in_turn() -> None:
    alone = Scheduler(8, dynamic=False)
    assert timeline(alone, [0, 1, 2]) == [(0, 1), (10, 1), (20, 1)]


def test_without_dynamic_batching_two_instances_share_one_queue() -> None:
    alone = Scheduler(8, dynamic=False, instances=2)
    assert timeline(alone, [0, 1, 2, 3]) == [(0, 1), (1, 1), (10, 1), (11, 1)]


@pytest.mark.parametrize("prefetch", [True, False])
def test_without_delay_what_is_there_is_sent(prefetch: bool) -> None:
    scheduler = Scheduler(8, prefetch=prefetch)
    assert timeline(scheduler, [0, 1, 2, 3]) == [(0, 1), (10, 3)]


def test_without_delay_the_largest_preferred_size_comes_first() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(2, 4), prefetch=False)
    arrive_ms = [0.0, 1, 2, 3, 4, 5, 6, 7]
    assert timeline(scheduler, arrive_ms) == [(0, 1), (10, 4), (20, 2), (30, 1)]


def test_prefetching_closes_batches_before_an_instance_is_idle() -> None:
    """The batch of 2 is closed at 2 ms; then one request opens another, and both places are taken.

    That other one grows at 10 ms, when the first leaves the queue.
    """
    scheduler = Scheduler(8, preferred_batch_sizes=(2, 4))
    arrive_ms = [0.0, 1, 2, 3, 4, 5, 6, 7]
    assert timeline(scheduler, arrive_ms) == [(0, 1), (10, 2), (20, 4), (30, 1)]


def test_two_batches_are_prefetched_for_each_instance() -> None:
    """Both instances are busy; four pairs are closed at 3, 5, 7, 9 ms and are full places.

    Five more requests wait. Without prefetching all thirteen do, and go by the largest size.
    """
    arrive_ms = [0.0, 1, *np.linspace(2, 8, 13).tolist()]
    ahead = Scheduler(8, preferred_batch_sizes=(2, 6), instances=2)
    assert [size for _, size in timeline(ahead, arrive_ms)] == [1, 1, 2, 2, 2, 6, 1]
    not_ahead = Scheduler(8, preferred_batch_sizes=(2, 6), instances=2, prefetch=False)
    assert [size for _, size in timeline(not_ahead, arrive_ms)] == [1, 1, 6, 6, 1]


def test_a_batch_waits_for_its_delay() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(4,), max_queue_delay_us=5000)
    assert timeline(scheduler, [0, 1]) == [(5, 2)]


def test_a_preferred_size_ends_the_wait() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(4,), max_queue_delay_us=5000)
    assert timeline(scheduler, [0, 1, 2, 3]) == [(3, 4)]


def test_what_is_left_of_a_preferred_batch_waits_for_the_delay() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(4,), max_queue_delay_us=5000, instances=2)
    assert timeline(scheduler, [0, 0, 0, 0, 1, 2]) == [(0, 4), (6, 2)]


def test_a_delay_that_has_passed_makes_batches_above_the_preferred_sizes() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(2,), max_queue_delay_us=1000, prefetch=False)
    assert timeline(scheduler, [0, 0, 2, 3, 4, 5, 6]) == [(0, 2), (10, 5)]


def test_a_batch_that_waits_for_an_instance_grows_above_the_preferred_sizes() -> None:
    """2 and 2.5 make a preferred batch, which 4 joins and closes."""
    scheduler = Scheduler(8, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    assert timeline(scheduler, [0, 0, 2, 2.5, 4]) == [(0, 2), (10, 3)]


def test_an_instance_merges_batches_that_have_waited_longer_than_the_delay() -> None:
    """The batch of 2, 2.5 and 4 is closed; 5 opens another at 6. Both places are taken then."""
    scheduler = Scheduler(8, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    assert timeline(scheduler, [0, 0, 2, 2.5, 4, 5, 7, 8]) == [(0, 2), (10, 4), (20, 2)]


def test_batches_are_not_merged_above_the_largest_size() -> None:
    scheduler = Scheduler(3, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    assert timeline(scheduler, [0, 0, 2, 2.5, 4, 5]) == [(0, 2), (10, 3), (20, 1)]


def test_a_batch_that_was_too_large_to_be_merged_does_not_grow_any_more() -> None:
    """The batch of 5 is tried at 10; otherwise 19.5 would join it at once."""
    scheduler = Scheduler(3, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    arrive_ms = [0.0, 0, 2, 2.5, 4, 5, 19.5]
    assert timeline(scheduler, arrive_ms) == [(0, 2), (10, 3), (20, 1), (30, 1)]


def test_batches_younger_than_the_delay_are_not_merged() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    assert timeline(scheduler, [0, 0, 2, 2.5, 4, 9.5, 9.6]) == [(0, 2), (10, 3), (20, 2)]


def test_nothing_is_merged_without_delay() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(2,))
    assert timeline(scheduler, [0, 1, 2, 3, 4]) == [(0, 1), (10, 2), (20, 2)]


def test_free_dimensions_make_an_open_batch_grow_with_each_request() -> None:
    """The first request is sent at 5 and executes until 15; the one of 6 is scheduled at 11."""
    scheduler = Scheduler(8, preferred_batch_sizes=(4,), max_queue_delay_us=5000)
    assert timeline(scheduler, [0, 6, 12]) == [(5, 1), (15, 2)]


def test_fixed_dimensions_leave_the_batcher_asleep_until_a_preferred_size_is_there() -> None:
    """Nothing wakes it at 12; at 15 the batch begins, and what is left has waited for 3 ms."""
    scheduler = Scheduler(
        8, preferred_batch_sizes=(4,), max_queue_delay_us=5000, free_dimensions=False
    )
    assert timeline(scheduler, [0, 6, 12]) == [(5, 1), (15, 1), (25, 1)]


def test_an_instance_that_is_idle_takes_a_batch_at_once() -> None:
    scheduler = Scheduler(8, instances=2)
    assert timeline(scheduler, [0, 1, 2, 3]) == [(0, 1), (1, 1), (10, 2)]


def test_executions_slow_down_with_the_instances_that_are_busy_when_they_begin() -> None:
    curve = ServiceCurve((1, 64), (10.0, 10.0), busy_factors=(0.5, 1.0))
    done = simulate(Scheduler(8, instances=2), [0, 1], curve=curve)
    assert done.execution_ms.tolist() == [5, 10]


def test_an_execution_takes_longer_on_an_instance_that_was_idle() -> None:
    alone = Scheduler(8, dynamic=False)
    done = simulate(alone, [0, 1, 30], curve=replace(TEN_MS, wake_ms=3.0))
    assert done.execution_begin_ms.tolist() == [0, 13, 30]
    assert done.execution_ms.tolist() == [13, 10, 13]


def test_each_instance_wakes_by_itself() -> None:
    alone = Scheduler(8, dynamic=False, instances=2)
    done = simulate(alone, [0, 0, 1, 12], curve=replace(TEN_MS, wake_ms=3.0))
    assert done.execution_ms.tolist() == [13, 13, 10, 10]
    late = simulate(alone, [0, 0, 1, 14], curve=replace(TEN_MS, wake_ms=3.0))
    assert late.execution_ms.tolist() == [13, 13, 10, 13]


def test_requests_of_different_shapes_are_not_merged() -> None:
    scheduler = Scheduler(8)
    arrive_ms, shapes = [0.0, 1, 2, 3], [0, 0, 1, 0]
    assert timeline(scheduler, arrive_ms, shapes) == [(0, 1), (10, 1), (20, 1), (30, 1)]


def test_instances_do_not_merge_batches_of_different_shapes() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(2,), max_queue_delay_us=1000)
    arrive_ms, shapes = [0.0, 0, 2, 2.5, 4, 4.5], [0, 0, 0, 0, 1, 1]
    assert timeline(scheduler, arrive_ms, shapes) == [(0, 2), (10, 2), (20, 2)]


def test_another_shape_sends_what_was_still_waiting() -> None:
    scheduler = Scheduler(8, max_queue_delay_us=5000, instances=2)
    assert timeline(scheduler, [0, 1, 2], [0, 0, 1]) == [(2, 2), (7, 1)]


def test_execution_takes_longer_for_longer_shapes() -> None:
    draws = Draws(np.ones(2), np.array([0, 1], dtype=np.int32), np.array([0.5, 3.0]))
    done = open_loop(Scheduler(8), TEN_MS, np.array([0.0, 1.0]), draws)
    assert done.execution_ms.tolist() == [5, 30]


def test_batch_sizes_count_inferences_not_requests() -> None:
    scheduler = Scheduler(8, preferred_batch_sizes=(5,), request_size=2, prefetch=False)
    # 5 is no whole number of requests: what comes before the first that exceeds it is sent.
    assert timeline(scheduler, [0, 1, 2, 3, 4]) == [(0, 2), (10, 4), (20, 4)]


def test_a_full_queue_refuses() -> None:
    scheduler = Scheduler(8, policy=QueuePolicy(max_queue_size=2))
    done = simulate(scheduler, [0, 1, 2, 3, 11])
    assert done.refused.tolist() == [False, False, False, True, False]
    assert done.done_ms.tolist() == [10, 20, 20, 3, 30]
    assert np.isnan(done.queue_ms[3])


def test_a_queue_policy_ends_prefetching() -> None:
    arrive_ms = [0.0, 1, 2, 3, 4, 5, 6, 7]
    bounded = Scheduler(8, preferred_batch_sizes=(2, 4), policy=QueuePolicy(max_queue_size=99))
    assert timeline(bounded, arrive_ms) == [(0, 1), (10, 4), (20, 2), (30, 1)]


def test_what_has_waited_too_long_is_refused_when_a_place_is_free() -> None:
    scheduler = Scheduler(8, policy=QueuePolicy(timeout_us=4000))
    done = simulate(scheduler, [0, 1, 8])
    assert done.refused.tolist() == [False, True, False]
    assert done.done_ms.tolist() == [10, 10, 20]


def test_while_all_instances_are_busy_what_is_too_late_is_refused_twice_a_second() -> None:
    """The batcher sleeps until 500 since nothing was queued, and then waits for an instance."""
    curve = ServiceCurve((1,), (2000.0,))
    scheduler = Scheduler(1, policy=QueuePolicy(timeout_us=4000))
    assert simulate(scheduler, [0, 1], curve=curve).done_ms.tolist() == [2000, 1000]


def test_a_timeout_that_passes_while_a_batch_waits_for_its_delay_refuses() -> None:
    scheduler = Scheduler(8, max_queue_delay_us=9000, policy=QueuePolicy(timeout_us=4000))
    done = simulate(scheduler, [0, 3])
    assert done.done_ms.tolist() == [4, 7]
    assert done.refused.all()


def test_what_has_waited_too_long_is_served_last() -> None:
    scheduler = Scheduler(1, policy=QueuePolicy(timeout_us=4000, timeout_action="delay"))
    assert simulate(scheduler, [0, 1, 8]).done_ms.tolist() == [10, 30, 20]


def test_what_is_served_last_fills_batches() -> None:
    scheduler = Scheduler(8, policy=QueuePolicy(timeout_us=4000, timeout_action="delay"))
    assert timeline(scheduler, [0, 1, 8]) == [(0, 1), (10, 2)]


def test_each_reply_sends_the_next_request() -> None:
    curve = ServiceCurve((1,), (10.0,), outside_ms=2.0)
    draws = Draws(np.ones(4), np.zeros(4, dtype=np.int32), np.ones(1))
    done = closed_loop(Scheduler(1, dynamic=False), curve, 2, draws)
    assert done.arrive_ms.tolist() == [0, 0, 12, 22]
    assert done.latency_ms.tolist() == [12, 22, 20, 20]


def test_the_figures_of_a_simulation_are_those_of_its_executions() -> None:
    done = simulate(Scheduler(8), [0, 1, 2, 3])
    assert sorted(done.execution_size.tolist()) == [1, 3]
    assert done.queue_ms.tolist() == [0, 9, 8, 7]


def test_a_request_above_the_largest_batch_is_refused_with_both_sizes() -> None:
    with pytest.raises(ValueError, match=r"4 inferences is above max_batch_size 2"):
        simulate(Scheduler(2, request_size=4), [0])


def test_a_curve_for_fewer_instances_is_refused() -> None:
    with pytest.raises(ValueError, match="each of 4 instances, but there are 3"):
        simulate(Scheduler(2, instances=4), [0])


MIXED = LengthDistribution((4, 8, 16), (1.0, 1.0, 2.0))


def stream(batch_size: int = 1, length: int | None = None) -> Stream:
    payloads = Payloads((TensorSpec("ids", "INT64", (length,), 0, 9),), MIXED)
    limit = LatencyLimit(95, 100)
    return Stream("s", "m", "poisson", payloads, limit, 10, batch_size=batch_size)


def test_a_scheduler_is_told_what_triton_is_told() -> None:
    model = ModelServing(
        "m",
        ArtifactSpec("m", "onnxruntime", "python", "fp32"),
        max_batch_size=8,
        batching=Batching((4,), 500),
        groups=(InstanceGroup(count=2),),
    )
    assert scheduler_of(model, stream()) == Scheduler(8, (4,), 500, instances=2)
    assert not scheduler_of(model, stream(length=16)).free_dimensions


def test_without_batching_requests_of_several_inferences_are_executed_alone() -> None:
    model = ModelServing("m", ArtifactSpec("m", "onnxruntime", "python", "fp32"), 4)
    assert timeline(scheduler_of(model, stream(batch_size=4)), [0, 1]) == [(0, 4), (10, 4)]


def test_requests_have_the_shapes_that_they_are_padded_to() -> None:
    artifact = ArtifactSpec("m", "onnxruntime", "python", "fp32")
    padded = ModelServing("m", artifact, padding=(8,))
    assert shapes_of(padded, stream(), factor=float) == Shapes((0.5, 0.5), (8.0, 16.0))
    assert shapes_of(ModelServing("m", artifact), stream(), float) == Shapes((1.0,), (16.0,))
    assert shapes_of(padded, stream(length=16), float) == Shapes((1.0,), (16.0,))


def test_a_request_of_several_inferences_is_as_long_as_the_longest() -> None:
    artifact = ArtifactSpec("m", "onnxruntime", "python", "fp32")
    padded = ModelServing("m", artifact, padding=(4, 8))
    found = shapes_of(padded, stream(batch_size=2), factor=float)
    assert found == Shapes((1 / 16, 3 / 16, 3 / 4), (4.0, 8.0, 16.0))


def with_dimensions(*dimensions: Dimension, length: int | None = None) -> Stream:
    names = tuple(each.name for each in dimensions)
    payloads = Payloads((TensorSpec("x", "FP32", (length, *names), 0, 1),), MIXED, dimensions)
    return replace(stream(), payloads=payloads)


def test_every_combination_of_free_dimensions_is_a_shape() -> None:
    """Triton batches requests of one shape only."""
    artifact = ArtifactSpec("m", "onnxruntime", "python", "fp32")
    padded = ModelServing("m", artifact, padding=(8,))
    height = Dimension("height", LengthDistribution((32, 48), (1.0, 3.0)))
    follower = Dimension("width", None, of="height", times=2)
    both = with_dimensions(height, follower)
    assert shapes_of(padded, both, factor=float) == Shapes(
        (0.125, 0.375, 0.125, 0.375), (8.0, 8.0, 16.0, 16.0)
    )
    fixed = with_dimensions(height, length=3)
    assert shapes_of(padded, fixed, float) == Shapes((0.25, 0.75), (16.0, 16.0))
    assert scheduler_of(padded, fixed).free_dimensions


def test_shapes_of_requests_in_a_file_are_those_that_occur() -> None:
    """Sizes of one request go together: three shapes here, and not four of 2 x 2 sizes."""
    artifact = ArtifactSpec("m", "onnxruntime", "python", "fp32")
    sizes = LengthDistribution((1, 2), (5.0, 5.0))
    of_file = with_dimensions(Dimension("height", sizes), Dimension("width", sizes), length=3)
    [tensor] = of_file.payloads.tensors
    payloads = replace(
        of_file.payloads,
        tensors=(replace(tensor, from_file=True),),
        file=RequestFile(Path("images"), "", 10, (4, 5, 1)),
    )
    shapes = shapes_of(ModelServing("m", artifact), replace(of_file, payloads=payloads), float)
    assert shapes.shares == pytest.approx((0.4, 0.5, 0.1))


def test_of_very_many_shapes_each_is_rare() -> None:
    artifact = ArtifactSpec("m", "onnxruntime", "python", "fp32")
    sizes = LengthDistribution(tuple(range(1, 1001)), (1.0,) * 1000)
    many = with_dimensions(Dimension("height", sizes), Dimension("width", sizes), length=3)
    found = shapes_of(ModelServing("m", artifact), many, float)
    assert len(found.shares) == len(found.factors) == 4096
    assert sum(found.shares) == pytest.approx(1.0)
    assert max(found.shares) < 0.001

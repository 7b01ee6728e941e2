"""What part of the compute time is the Python backend's."""

from __future__ import annotations

import pytest

from optimizer.measurement.host_share import HostTiming, model_ms
from optimizer.measurement.level import BatchPoint, ServerSplit


def split(*points: BatchPoint, compute_infer_ms: float) -> ServerSplit:
    return ServerSplit("words", 100, 0.5, 0.1, compute_infer_ms, 0.1, points)


def test_a_tiny_model_takes_next_to_nothing_of_its_compute_time() -> None:
    timings = (HostTiming(1, 0.3, 0.009),)
    found = model_ms(split(BatchPoint(1, 100, 1.34), compute_infer_ms=1.34), timings)
    assert found == pytest.approx(1.34 * 0.03)


def test_shares_between_the_timed_batches_lie_between_theirs() -> None:
    timings = (HostTiming(8, 10.0, 9.0), HostTiming(1, 2.0, 1.0))
    alone = model_ms(split(BatchPoint(1, 10, 4.0), compute_infer_ms=4.0), timings)
    full = model_ms(split(BatchPoint(16, 10, 20.0), compute_infer_ms=20.0), timings)
    mixed = (BatchPoint(1, 10, 4.0), BatchPoint(8, 10, 10.0))
    both = model_ms(split(*mixed, compute_infer_ms=8.0), timings)
    assert alone == pytest.approx(2.0)
    assert full == pytest.approx(18.0)
    # Of 840 ms that requests waited for, 740 were the model's.
    assert both == pytest.approx(8.0 * 740 / 840)


def test_a_timing_that_is_slower_without_the_server_leaves_the_host_nothing() -> None:
    timings = (HostTiming(1, 2.0, 3.0),)
    assert model_ms(split(BatchPoint(1, 10, 4.0), compute_infer_ms=4.0), timings) == 4.0


def test_without_timings_or_executions_nothing_is_known() -> None:
    known = (HostTiming(1, 2.0, 1.0),)
    assert model_ms(split(BatchPoint(1, 10, 4.0), compute_infer_ms=4.0), ()) is None
    assert model_ms(split(compute_infer_ms=0.0), known) is None

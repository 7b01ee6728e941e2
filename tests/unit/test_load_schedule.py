"""Which request of which stream is due when."""

import numpy as np

from optimizer.load.exchange import Outstanding, Schedule
from optimizer.load.plan import ClosedLoop, LevelPlan, OpenLoop, PreparedStream
from optimizer.load.schedule import order_for
from optimizer.workload import LatencyLimit, LengthDistribution, Payloads, Stream


def prepared(name: str, demand_per_second: float) -> PreparedStream:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95, 100)
    stream = Stream(name, name, "poisson", payloads, limit, demand_per_second)
    return PreparedStream(stream, (name.encode(),))


STREAMS = (prepared("rare", 50.0), prepared("common", 450.0))


def test_open_loop_merges_the_streams_at_their_own_rates() -> None:
    plan = LevelPlan(OpenLoop(2.0), warmup_seconds=1, seconds=9, timeout_seconds=5)
    order = order_for(plan, STREAMS, "host:1", np.random.default_rng(3))
    assert isinstance(order.pace, Schedule)
    due = order.pace.due_seconds
    assert np.all(np.diff(due) >= 0)
    assert due[-1] < plan.sending_seconds
    counts = np.bincount(order.streams)
    assert abs(counts[0] - 1_000) < 200
    assert abs(counts[1] - 9_000) < 600
    assert order.prepared == ((b"rare",), (b"common",))


def test_closed_loop_mixes_the_streams_by_demand() -> None:
    plan = LevelPlan(ClosedLoop(16), warmup_seconds=1, seconds=9, timeout_seconds=5)
    order = order_for(plan, STREAMS, "host:1", np.random.default_rng(3))
    assert order.pace == Outstanding(16, 10)
    assert abs(np.mean(order.streams == 0) - 0.1) < 0.02

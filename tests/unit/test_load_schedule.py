"""Which request of which stream is due when."""

import numpy as np

from optimizer.load.exchange import Schedule, Users
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, PreparedStream, Target
from optimizer.load.schedule import order_for, shares
from optimizer.load.user_load import Phase, UserLoad
from optimizer.workload.request_sizes import LengthDistribution
from optimizer.workload.streams import LatencyLimit, Payloads, Stream
from optimizer.workload.transport import SerialisedRequest


def prepared(name: str, demand_per_second: float) -> PreparedStream:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95, 100)
    stream = Stream(name, name, "poisson", payloads, limit, demand_per_second)
    return PreparedStream(stream, (SerialisedRequest(name, name.encode()),))


TARGET = Target("grpc", "host:1", (prepared("rare", 50.0), prepared("common", 450.0)))


def test_open_loop_merges_the_streams_at_their_own_rates() -> None:
    plan = LevelPlan(OpenLoop(2.0), warmup_seconds=1, seconds=9, timeout_seconds=5)
    order = order_for(plan, TARGET, np.random.default_rng(3))
    assert isinstance(order.sending, Schedule)
    due = order.sending.due_seconds
    assert np.all(np.diff(due) >= 0)
    assert due[-1] < plan.sending_seconds
    counts = np.bincount(order.streams)
    assert abs(counts[0] - 1_000) < 200
    assert abs(counts[1] - 9_000) < 600
    assert [pool[0].body for pool in order.prepared] == [b"rare", b"common"]


def test_closed_loop_mixes_the_streams_by_demand() -> None:
    plan = LevelPlan(ClosedLoop(16), warmup_seconds=1, seconds=9, timeout_seconds=5)
    order = order_for(plan, TARGET, np.random.default_rng(3))
    assert isinstance(order.sending, Users)
    assert (order.sending.counts.tolist(), order.sending.seconds) == ([16], 10)
    assert abs(np.mean(order.streams == 0) - 0.1) < 0.02


def test_processes_share_an_open_loop_without_loss() -> None:
    plan = LevelPlan(OpenLoop(0.1), warmup_seconds=0, seconds=5, timeout_seconds=5)
    order = order_for(plan, TARGET, np.random.default_rng(3))
    parts = shares(order, 3)
    assert isinstance(order.sending, Schedule)
    due = [part.sending.due_seconds for part in parts if isinstance(part.sending, Schedule)]
    assert np.array_equal(np.sort(np.concatenate(due)), order.sending.due_seconds)
    assert sum((part.streams == 0).sum() for part in parts) == (order.streams == 0).sum()


def test_processes_share_users_at_every_moment() -> None:
    load = UserLoad((Phase(5, 60, 4),))
    plan = LevelPlan(load, warmup_seconds=0, seconds=4, timeout_seconds=5)
    order = order_for(plan, TARGET, np.random.default_rng(3))
    divided = [part.sending for part in shares(order, 3)]
    counts = [users.counts for users in divided if isinstance(users, Users)]
    assert isinstance(order.sending, Users)
    assert np.array_equal(np.sum(counts, axis=0), order.sending.counts)

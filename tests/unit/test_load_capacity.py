"""The short protocol on a simulated server whose true capacity is known."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.errors import LoadTestFailure
from optimizer.load.capacity import CapacityProtocol, CapacityResult, find_capacity, why_missed
from optimizer.load.exchange import Replies
from optimizer.load.levels import load_level
from optimizer.load.plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.load.schedule import demand_mix, due_requests
from optimizer.measurement import LoadLevel, StreamLevel
from optimizer.workload import LatencyLimit, LengthDistribution, Payloads, Stream, Workload

PROTOCOL = CapacityProtocol()


def workload(limit_ms: float, *demands_per_second: float) -> Workload:
    payloads = Payloads((), LengthDistribution((32,), (1.0,)))
    limit = LatencyLimit(95, limit_ms)
    return Workload(
        tuple(
            Stream(f"stream {n}", "bert", "poisson", payloads, limit, demand)
            for n, demand in enumerate(demands_per_second or (500.0,))
        )
    )


@dataclass
class SimulatedServer:
    """First in, first out: each instance takes what waits, up to `max_batch`, and serves it in a
    constant time. With `max_batch` 1 and random arrivals it is M/D/c.
    """

    work: Workload
    instances: int = 2
    max_batch: int = 1
    batch_seconds: float = 0.010
    request_seconds: float = 0.0
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))
    plans: list[LevelPlan] = field(default_factory=list)

    def __call__(self, plan: LevelPlan) -> LoadLevel:
        self.plans.append(plan)
        return load_level(plan, self.work.streams, self._replies(plan))

    @property
    def saturation_per_second(self) -> float:
        seconds = self.batch_seconds + self.request_seconds * self.max_batch
        return self.instances * self.max_batch / seconds

    def _replies(self, plan: LevelPlan) -> Replies:
        if isinstance(plan.load, OpenLoop):
            due, streams = due_requests(
                self.work.streams, plan.load.load_factor, plan.sending_seconds, self.rng
            )
            done = self.serve(due.tolist())[1]
        else:
            due, done = self.serve([0.0] * plan.load.concurrency, plan.sending_seconds)
            streams = np.resize(demand_mix(self.work.streams, self.rng), len(due))
        late = np.flatnonzero(done - due > plan.timeout_seconds)
        errors = {int(index): "DEADLINE_EXCEEDED: too late" for index in late}
        return Replies(streams, due, due, done, errors)

    def serve(
        self, due: Sequence[float], closed_loop_seconds: float = 0.0
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Due and done times; in a closed loop every reply is followed by a new request."""
        free, waiting = [0.0] * self.instances, sorted(due)
        begun, done = list[float](), list[float]()
        while waiting:
            start = max(heapq.heappop(free), waiting[0])
            batch = list[float]()
            while waiting and waiting[0] <= start and len(batch) < self.max_batch:
                batch.append(heapq.heappop(waiting))
            finish = start + self.batch_seconds + self.request_seconds * len(batch)
            heapq.heappush(free, finish)
            begun += batch
            done += [finish] * len(batch)
            if finish < closed_loop_seconds:
                for _ in batch:
                    heapq.heappush(waiting, finish)
        return np.array(begun), np.array(done)

    def true_capacity_per_second(self, requests: int = 40_000) -> float:
        """Bisection over long runs of the same arrivals."""
        gaps = np.random.default_rng(0).exponential(size=requests)
        limit = self.work.streams[0].limit
        low, high = 0.0, self.saturation_per_second
        while high - low > 0.002 * self.saturation_per_second:
            rate = (low + high) / 2
            due, done = self.serve((np.cumsum(gaps) / rate).tolist())
            latency_ms = np.percentile(done - due, limit.percentile) * 1e3
            low, high = (rate, high) if latency_ms <= limit.latency_ms else (low, rate)
        return low


def search(
    server: SimulatedServer, concurrency: int = 64, worse_below: float | None = None
) -> CapacityResult:
    return find_capacity(server, server.work, PROTOCOL, concurrency, worse_below)


SERVERS = {
    "light load within a wide limit": SimulatedServer(workload(500)),
    "M/D/1, tight": SimulatedServer(workload(5), instances=1, batch_seconds=0.002),
    "M/D/4, tight": SimulatedServer(workload(10), instances=4, batch_seconds=0.006),
    "batches of 16": SimulatedServer(
        workload(60), instances=1, max_batch=16, batch_seconds=0.010, request_seconds=0.001
    ),
}


@pytest.mark.parametrize("name", SERVERS)
def test_the_capacity_is_close_to_the_truth(name: str) -> None:
    truth = min(
        SERVERS[name].true_capacity_per_second(), 0.95 * SERVERS[name].saturation_per_second
    )
    errors = []
    for seed in range(10):
        result = search(replace(SERVERS[name], rng=np.random.default_rng(seed), plans=[]))
        assert result.verdict == "ok"
        errors.append(abs(result.measurement.capacity_per_second / truth - 1))
    assert median(errors) <= 0.06
    assert max(errors) <= 0.15


def test_one_check_is_enough_where_the_limit_is_wide() -> None:
    server = SimulatedServer(workload(500))
    result = search(server)
    assert [plan.load for plan in server.plans[:1]] == [ClosedLoop(64)]
    assert len(server.plans) == 2
    measurement = result.measurement
    assert measurement.load_factor == pytest.approx(0.95 * result.saturation.load_factor)
    assert measurement.load_factor_low == measurement.load_factor
    assert measurement.load_factor_high is not None
    assert measurement.load_factor_high >= result.saturation.load_factor
    assert measurement.level_at_capacity is measurement.levels[1]
    assert result.excess == measurement.levels[1].excess
    assert measurement.ended == "met the limits at 190.2/s, next to saturation"


def test_bisection_brackets_the_capacity_and_says_what_stopped_it() -> None:
    result = search(replace(SERVERS["M/D/1, tight"], plans=[]))
    measurement = result.measurement
    assert measurement.load_factor_high is not None
    width = measurement.load_factor_high - measurement.load_factor
    assert 0 < width <= PROTOCOL.resolution * result.saturation.load_factor
    assert "over the limit of 5 ms" in measurement.ended
    passed = [x for x in measurement.levels[1:] if why_missed(x) is None]
    assert max(x.load_factor for x in passed) == measurement.load_factor


def test_a_limit_below_the_service_time_is_infeasible() -> None:
    server = SimulatedServer(workload(8))
    result = search(server)
    assert result.verdict == "infeasible"
    assert result.measurement.load_factor == 0
    assert result.measurement.level_at_capacity is None
    assert server.plans[-1].load == OpenLoop(0.05 * result.saturation.load_factor)
    assert result.excess == pytest.approx(10 / 8 - 1)
    assert result.measurement.ended == (
        "even at 10.0/s: p95 of stream 0 10.0 ms, over the limit of 8 ms"
    )


def test_the_floor_is_never_below_one_request_a_second() -> None:
    server = SimulatedServer(workload(300), instances=1, batch_seconds=0.4)
    result = search(server, concurrency=4)
    assert result.verdict == "infeasible"
    assert server.plans[-1].load == OpenLoop(1 / 500)


def test_a_configuration_that_saturates_below_the_incumbent_is_bounded() -> None:
    server = SimulatedServer(workload(500))
    result = search(server, worse_below=0.5)
    assert result.verdict == "bounded"
    assert result.excess is None
    assert len(server.plans) == 1
    assert result.measurement.load_factor == 0
    assert result.measurement.load_factor_high == pytest.approx(0.4, rel=0.02)


def test_one_that_saturates_above_the_incumbent_is_measured() -> None:
    assert search(SimulatedServer(workload(500)), worse_below=0.39).verdict == "ok"


def test_levels_last_until_enough_requests_are_due_but_not_for_ever() -> None:
    quick, slow, slower = (
        SimulatedServer(workload(60_000), instances=1, batch_seconds=seconds)
        for seconds in (0.01, 0.08, 0.5)
    )
    for server in (quick, slow, slower):
        search(server, concurrency=4)
    assert quick.plans[1].seconds == PROTOCOL.check_seconds
    assert slow.plans[1].seconds == pytest.approx(200 / (0.95 * 12.5), rel=0.02)
    assert slower.plans[1].seconds == 3 * PROTOCOL.check_seconds


def test_several_streams_share_the_load_by_demand() -> None:
    result = search(SimulatedServer(workload(500, 300.0, 100.0)))
    assert result.verdict == "ok"
    assert result.measurement.capacity_per_second == pytest.approx(190, rel=0.01)
    first, second = result.measurement.levels[-1].streams
    assert first.offered_per_second / second.offered_per_second == pytest.approx(3, rel=0.2)


def with_errors(level: LoadLevel, share: float) -> LoadLevel:
    def failing(stream: StreamLevel) -> StreamLevel:
        errors = round(stream.sent * share)
        completed = stream.sent - errors
        return replace(stream, errors=errors, completed=completed, first_error="INTERNAL: boom")

    return replace(level, streams=tuple(map(failing, level.streams)))


def test_a_level_with_errors_does_not_meet_the_limits() -> None:
    server = SimulatedServer(workload(500))
    result = find_capacity(
        lambda plan: with_errors(server(plan), 0.1), server.work, PROTOCOL, concurrency=64
    )
    assert result.verdict == "infeasible"
    assert result.excess == pytest.approx(0.1, abs=0.01)
    assert result.measurement.ended.endswith("requests failed: INTERNAL: boom")


def test_a_level_of_nothing_but_errors_is_a_transient_failure() -> None:
    server = SimulatedServer(workload(500))
    with pytest.raises(LoadTestFailure, match="every request failed: INTERNAL: boom") as caught:
        find_capacity(lambda plan: with_errors(server(plan), 1), server.work, PROTOCOL, 64)
    assert caught.value.transient


def test_a_growing_backlog_is_not_capacity_however_lax_the_limit() -> None:
    server = SimulatedServer(workload(60_000))
    overload = server(LevelPlan(OpenLoop(0.5), 1, 8, 60))
    assert overload.meets_limits
    assert "more were waiting after 8 s" in str(why_missed(overload))

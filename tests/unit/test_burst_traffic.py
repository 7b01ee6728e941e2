"""Traffic in bursts: lengths of levels, their verdicts, the capacity measured and predicted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from optimizer.commands.protocols import protocol_of
from optimizer.load.capacity import find_capacity
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.load.schedule import due_requests
from optimizer.load.stopping import LateFraction
from optimizer.simulator.batcher import Scheduler
from optimizer.simulator.network import one_batcher
from optimizer.simulator.prediction import OfferedStream, predict_capacity, predict_level
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.space_file.reader import MeasurementSettings
from optimizer.workload.arrivals import BurstArrivals, Bursts
from optimizer.workload.streams import Workload
from tests.unit.simulated_server import SimulatedServer, workload

BURSTS = Bursts(times_mean=3.0, burst_seconds=1.0, period_seconds=10.0)
SETTINGS = MeasurementSettings(4.0, 6.0, 0.5, None, 5000)


def in_bursts(work: Workload) -> Workload:
    return replace(work, streams=tuple(replace(s, arrivals=BURSTS) for s in work.streams))


WORK = in_bursts(workload(100.0))
SERVER = SimulatedServer(WORK, instances=1, batch_seconds=0.002)


def true_capacity(server: SimulatedServer) -> float:
    """Bisect over 200 periods."""
    limit = server.work.streams[0].limit
    low, high = 0.0, server.saturation_per_second
    while high - low > 0.002 * server.saturation_per_second:
        rate = (low + high) / 2
        rng = np.random.default_rng(0)
        due, done = server.serve(
            BurstArrivals(replace(BURSTS, begin_seconds=1.0)).due_seconds(rate, 2_000.0, rng)
        )
        late = np.percentile(done - due, limit.percentile) * 1e3 > limit.latency_ms
        low, high = (low, rate) if late else (rate, high)
    return low


def test_levels_have_whole_periods_and_time_for_several() -> None:
    protocol = protocol_of(SETTINGS, WORK)
    assert protocol.level_seconds(100, 50.0) == 10.0
    assert protocol.level_seconds(600, 50.0) == 20.0
    assert protocol.warmup_seconds == 1.0, "a burst may begin before the level"
    assert protocol.load_seconds >= 3 * 11.0
    steady = protocol_of(SETTINGS, workload(100.0))
    assert (steady.level_seconds(600, 50.0), steady.period_seconds) == (12.0, 0.0)


def test_bursts_of_all_streams_come_together() -> None:
    work = in_bursts(workload(100.0, 200.0, 300.0))
    due, streams = due_requests(work.streams, 1.0, 30.0, np.random.default_rng(4))
    parts = [
        np.histogram(due[streams == n], bins=60, range=(0, 30))[0] for n in range(len(work.streams))
    ]
    assert np.corrcoef(parts).min() > 0.8


@pytest.mark.parametrize("seed", range(8))
def test_a_level_is_judged_by_whole_periods(seed: int) -> None:
    """At this load 8 % of the requests are late, all of them in bursts."""
    rate = 200.0
    stop = LateFraction(WORK.streams, warmup_seconds=1.0, least_seconds=2.0)
    plan = LevelPlan(OpenLoop(rate / WORK.demand_per_second), 1.0, 10.0, 2.0, stop=stop)
    level = replace(SERVER, rng=np.random.default_rng(seed), plans=[])(plan)
    assert level.verdict != "feasible"
    assert level.limit_overshoot > 0
    assert level.ended.startswith("its time was up") or "too many for" in level.ended


def test_the_capacity_in_bursts_is_close_to_the_truth() -> None:
    errors = []
    for limit_ms in (30.0, 60.0, 100.0, 200.0, 400.0):
        server = replace(SERVER, work=in_bursts(workload(limit_ms)))
        truth, protocol = true_capacity(server), protocol_of(SETTINGS, server.work)
        for seed in range(8):
            own = replace(server, rng=np.random.default_rng(seed), plans=[])
            found = find_capacity(own, own.work, protocol, 64)
            assert found.outcome == "ok"
            errors.append(abs(found.valid_measurement.capacity_per_second / truth - 1))
            assert all(plan.seconds % BURSTS.period_seconds == 0 for plan in own.plans[1:])
    assert np.median(errors) <= 0.05
    assert np.percentile(errors, 90) <= 0.12


@pytest.mark.parametrize("limit_ms", [30.0, 100.0, 400.0])
def test_the_simulator_predicts_the_capacity_in_bursts(limit_ms: float) -> None:
    server = replace(SERVER, work=in_bursts(workload(limit_ms)))
    network = one_batcher(Scheduler(1, dynamic=False), ServiceCurve((1,), (2.0,)))
    [stream] = server.work.streams
    offered = [OfferedStream(BURSTS, stream.limit)]
    found = predict_capacity(network, offered, 64, seed=1)
    assert found.per_second == pytest.approx(true_capacity(server), rel=0.04)


def test_a_simulated_level_has_the_mean_rate_and_whole_periods() -> None:
    network = one_batcher(Scheduler(1, dynamic=False), ServiceCurve((1,), (2.0,)))
    found = predict_level(network, BURSTS, 150.0, seed=1)
    assert found.achieved_per_second == pytest.approx(150.0, rel=0.05)

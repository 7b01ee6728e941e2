"""The short protocol on a simulated server whose true capacity is known."""

from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optimizer.errors import LoadTestFailure
from optimizer.load.capacity import CapacityProtocol, RunLevel, find_capacity
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel, StreamLevel
from optimizer.measurement.level_checks import why_missed
from optimizer.measurement.resource_use import MachineUse
from tests.unit.simulated_server import SimulatedServer, workload

PROTOCOL = CapacityProtocol()


def search(
    server: SimulatedServer, concurrency: int = 64, prune_below: float | None = None
) -> Evaluation:
    return find_capacity(server, server.work, PROTOCOL, concurrency, prune_below)


SERVERS = {
    "light load within a wide limit": SimulatedServer(workload(500)),
    "M/D/1, tight": SimulatedServer(workload(5), instances=1, batch_seconds=0.002),
    "M/D/2, slow": SimulatedServer(workload(60), instances=2, batch_seconds=0.020),
    "M/D/4, tight": SimulatedServer(workload(10), instances=4, batch_seconds=0.006),
    "batches of 16": SimulatedServer(
        workload(60), instances=1, max_batch=16, batch_seconds=0.010, request_seconds=0.001
    ),
    "batches of 16, tight": SimulatedServer(
        workload(35), instances=1, max_batch=16, batch_seconds=0.010, request_seconds=0.001
    ),
    "two of batches of 8": SimulatedServer(
        workload(60), instances=2, max_batch=8, batch_seconds=0.010, request_seconds=0.002
    ),
    "ten requests a second": SimulatedServer(workload(500), instances=1, batch_seconds=0.1),
    "a limit just above the service time": SimulatedServer(workload(15), batch_seconds=0.01),
}
SLOW = "ten requests a second"
HARD = (SLOW, "a limit just above the service time")


def capacity_errors(name: str, seeds: int, *, known: bool) -> list[float]:
    """How far off each capacity is, relative to the truth.

    Where similar configurations are `known`, their share of saturation is within 8 % of it.
    """
    server = SERVERS[name]
    truth = min(server.true_capacity_per_second(), 0.95 * server.saturation_per_second)
    share = truth / server.saturation_per_second
    errors = []
    for seed in range(seeds):
        fresh = replace(server, rng=np.random.default_rng(seed), plans=[])
        near = share * (1 + 0.08 * np.random.default_rng([seed, 1]).standard_normal())
        expected_share = float(near) if known else None
        result = find_capacity(fresh, fresh.work, PROTOCOL, 64, expected_share=expected_share)
        assert result.outcome == "ok"
        errors.append(abs(result.valid_measurement.capacity_per_second / truth - 1))
    return errors


@pytest.mark.parametrize("known", [False, True])
def test_the_capacity_is_close_to_the_truth(known: bool) -> None:
    errors = [e for name in SERVERS for e in capacity_errors(name, seeds=16, known=known)]
    assert median(errors) <= 0.03
    assert np.percentile(errors, 90) <= 0.085


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    instances=st.integers(1, 4),
    max_batch=st.sampled_from([1, 4, 16]),
    batch_ms=st.floats(2, 30),
    request_ms=st.floats(0, 2),
    room=st.floats(2, 20),
    seed=st.integers(0, 2**32),
)
def test_no_queue_is_much_overrated_or_takes_longer_than_it_may(
    instances: int, max_batch: int, batch_ms: float, request_ms: float, room: float, seed: int
) -> None:
    """`room`: the limit in service times of a full batch."""
    limit_ms = room * (batch_ms + max_batch * request_ms)
    server = SimulatedServer(
        workload(limit_ms),
        instances,
        max_batch,
        batch_ms / 1e3,
        request_ms / 1e3,
        np.random.default_rng(seed),
    )
    truth = min(server.true_capacity_per_second(), 0.95 * server.saturation_per_second)
    result = search(server, concurrency=2 * max_batch * instances)
    assert result.outcome == "ok"
    assert 0.6 <= result.valid_measurement.capacity_per_second / truth <= 1.35
    assert result.valid_measurement.capacity_low_per_second <= 1.1 * truth
    spent = sum(
        PROTOCOL.warmup_seconds + level.seconds for level in result.valid_measurement.levels
    )
    assert spent <= max(PROTOCOL.load_seconds, 1000 / server.saturation_per_second) + 7


def test_the_search_takes_no_more_load_than_it_may() -> None:
    for name, simulated in SERVERS.items():
        server = replace(simulated, plans=[])
        levels = search(server).valid_measurement.levels
        seconds = sum(PROTOCOL.warmup_seconds + level.seconds for level in levels)
        # What is spent is known after a level, and one load must have met the limit.
        missed = [each for each in levels[1:] if why_missed(each) is not None]
        least = max(PROTOCOL.check_seconds, PROTOCOL.check_requests / 10) / 4 + 1 + len(missed)
        allowed = PROTOCOL.load_requests / 10 if name == SLOW else PROTOCOL.load_seconds
        assert seconds <= allowed + least


@pytest.mark.parametrize("name", HARD)
def test_where_the_capacity_is_hard_to_find_the_interval_is_wide_enough(name: str) -> None:
    server = SERVERS[name]
    truth = server.true_capacity_per_second()
    above = 0
    for seed in range(20):
        result = search(replace(server, rng=np.random.default_rng(seed), plans=[]))
        above += result.valid_measurement.capacity_low_per_second > truth
    assert above <= 2


def test_a_level_that_was_unlucky_does_not_send_the_search_far_below_what_held() -> None:
    """The first level misses its limit by a stall of the machine; what follows holds more."""
    server = replace(SERVERS["light load within a wide limit"], plans=[])
    levels = list[LoadLevel]()

    def stalling(plan: LevelPlan) -> LoadLevel:
        open_loop = isinstance(plan.load, OpenLoop)
        stalled = open_loop and all(level.kind != "open_loop" for level in levels)
        slow = replace(server, batch_seconds=0.02, plans=[]) if stalled else server
        levels.append(slow(plan))
        return levels[-1]

    find_capacity(stalling, server.work, PROTOCOL, 64)
    first, *later = (level.load_factor for level in levels if level.kind == "open_loop")
    assert later
    assert min(later) > 0.6 * first


@pytest.mark.parametrize("seed", range(20))
def test_levels_that_contradict_each_other_give_a_wide_interval_and_a_capacity(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def disturbed(plan: LevelPlan) -> LoadLevel:
        """Another machine would be as fast as this one at this moment."""
        seconds = 0.01 * rng.uniform(0.4, 1.6)
        return replace(SERVERS["M/D/1, tight"], batch_seconds=seconds, rng=rng, plans=[])(plan)

    protocol = replace(PROTOCOL, check_seconds=3.0, load_seconds=8.0)
    result = find_capacity(disturbed, SERVERS["M/D/1, tight"].work, protocol, 16)
    found = result.valid_measurement
    if result.outcome == "ok":
        assert 0 < found.load_factor_low <= found.load_factor
        assert found.load_factor_high is not None
        assert found.load_factor <= found.load_factor_high


def first_share(server: SimulatedServer, expected_share: float | None = None) -> float:
    """Where the first open-loop level is, as a share of saturation."""
    plans: list[LevelPlan] = []
    result = find_capacity(
        replace(server, plans=plans), server.work, PROTOCOL, 64, expected_share=expected_share
    )
    load = plans[1].load
    assert isinstance(load, OpenLoop)
    return load.load_factor / result.valid_measurement.levels[0].load_factor


def test_the_first_level_is_where_the_service_time_puts_the_limit() -> None:
    for name in ("M/D/2, slow", "M/D/4, tight", SLOW):
        server = SERVERS[name]
        truth = server.true_capacity_per_second() / server.saturation_per_second
        assert first_share(server) == pytest.approx(truth, rel=0.1)


def test_the_first_level_is_next_to_saturation_where_the_service_time_depends_on_the_load() -> None:
    assert first_share(SERVERS["batches of 16, tight"]) == pytest.approx(0.95)


def test_the_first_level_is_a_little_above_what_similar_ones_served() -> None:
    assert first_share(SERVERS["M/D/1, tight"], 0.4) == pytest.approx(0.42)
    assert first_share(SERVERS["M/D/1, tight"], 0.94) == pytest.approx(0.95)


def test_a_limit_below_the_service_time_is_tried_at_the_floor_first() -> None:
    assert first_share(SimulatedServer(workload(8))) == pytest.approx(0.05)


def test_one_check_is_enough_where_the_limit_is_wide() -> None:
    server = SimulatedServer(workload(500))
    result = search(server)
    assert [plan.load for plan in server.plans[:1]] == [ClosedLoop(64)]
    assert len(server.plans) == 2
    measurement = result.valid_measurement
    assert measurement.load_factor == pytest.approx(
        0.95 * result.valid_measurement.levels[0].load_factor
    )
    assert measurement.load_factor_low == measurement.load_factor
    assert measurement.load_factor_high is not None
    assert measurement.load_factor_high >= measurement.levels[0].load_factor
    assert measurement.level_at_capacity is measurement.levels[1]
    assert result.limit_overshoot == measurement.levels[1].limit_overshoot
    assert measurement.ended == "met the limits at 193.3/s, next to saturation"


def test_levels_near_the_limit_bracket_the_capacity_and_say_what_stopped_them() -> None:
    result = search(replace(SERVERS["M/D/1, tight"], plans=[]))
    measurement = result.valid_measurement
    assert measurement.load_factor_high is not None
    assert measurement.load_factor_low < measurement.load_factor < measurement.load_factor_high
    assert "over the limit of 5 ms" in measurement.ended
    passed = [x.load_factor for x in measurement.levels[1:] if why_missed(x) is None]
    assert min(passed) <= measurement.load_factor


def test_a_limit_below_the_service_time_is_infeasible() -> None:
    server = SimulatedServer(workload(8))
    result = search(server)
    assert result.outcome == "infeasible"
    assert result.valid_measurement.load_factor == 0
    assert result.valid_measurement.level_at_capacity is None
    floor = server.plans[-1].load
    assert isinstance(floor, OpenLoop)
    assert floor.load_factor == pytest.approx(0.05 * result.valid_measurement.levels[0].load_factor)
    assert result.limit_overshoot == pytest.approx(10 / 8 - 1)
    assert result.valid_measurement.ended == (
        "even at 10.0/s: p95 of stream 0 10.0 ms, over the limit of 8 ms"
    )


def test_the_floor_is_never_below_one_request_a_second() -> None:
    server = SimulatedServer(workload(300), instances=1, batch_seconds=0.4)
    result = search(server, concurrency=4)
    assert result.outcome == "infeasible"
    assert server.plans[-1].load == OpenLoop(1 / 500)


def test_a_configuration_that_saturates_below_the_incumbent_is_bounded() -> None:
    server = SimulatedServer(workload(500))
    result = search(server, prune_below=0.5)
    assert result.outcome == "bounded"
    assert result.limit_overshoot == 0.0
    assert len(server.plans) == 1
    assert result.valid_measurement.load_factor == 0
    assert result.valid_measurement.load_factor_high == pytest.approx(0.4, rel=0.02)


def test_one_that_saturates_above_the_incumbent_is_measured() -> None:
    assert search(SimulatedServer(workload(500)), prune_below=0.39).outcome == "ok"


def beside(server: SimulatedServer, foreign_cores: float) -> RunLevel:
    """The server, while other processes take so much of two cores."""
    use = MachineUse(1.0, 2, 1.0, None, foreign_cores)
    return lambda plan: replace(server(plan), machine=use)


def test_one_that_may_be_cheaper_without_other_processes_is_measured() -> None:
    """Half a core of two may have slowed it down by a third."""
    server = SimulatedServer(workload(500))
    alone, disturbed = (
        find_capacity(beside(server, cores), server.work, PROTOCOL, 64, prune_below=0.5)
        for cores in (0.0, 0.5)
    )
    assert (alone.outcome, disturbed.outcome) == ("bounded", "ok")
    assert disturbed.valid_measurement.slowdown == pytest.approx(4 / 3)


def test_other_processes_widen_the_interval_upwards() -> None:
    server = replace(SERVERS["two of batches of 8"], plans=[])
    alone, disturbed = (
        find_capacity(
            beside(replace(server, rng=np.random.default_rng(0)), cores), server.work, PROTOCOL, 64
        ).valid_measurement
        for cores in (0.0, 0.5)
    )
    assert disturbed.capacity_per_second == alone.capacity_per_second
    assert disturbed.load_factor_low == alone.load_factor_low
    assert alone.load_factor_high is not None
    assert disturbed.load_factor_high == pytest.approx(4 / 3 * alone.load_factor_high)


def test_levels_last_until_enough_requests_are_due() -> None:
    quick, slow, slower = (
        SimulatedServer(workload(60_000), instances=1, batch_seconds=seconds)
        for seconds in (0.01, 0.08, 0.5)
    )
    for server in (quick, slow, slower):
        search(server, concurrency=4)
    assert quick.plans[1].seconds == PROTOCOL.check_seconds
    assert slow.plans[1].seconds == pytest.approx(PROTOCOL.check_requests / (0.95 * 12.5), rel=0.02)
    assert slower.plans[1].seconds == pytest.approx(PROTOCOL.check_requests / (0.95 * 2), rel=0.02)


def test_what_is_certain_not_to_be_fast_enough_ends_after_one_level_with_its_capacity() -> None:
    server = replace(SERVERS["two of batches of 8"], plans=[])
    truth = server.true_capacity_per_second()
    share = truth / server.saturation_per_second
    needed = 1.08 * truth / server.work.demand_per_second
    result = find_capacity(server, server.work, PROTOCOL, 64, needed, expected_share=0.8 * share)
    found = result.valid_measurement
    assert result.outcome == "ok"
    assert [level.kind for level in found.levels] == ["saturation", "open_loop"]
    assert found.load_factor_high is not None
    assert found.load_factor_high < needed
    assert found.ended == f"{1.08 * truth:.1f}/s are needed to be cheaper"


@pytest.mark.parametrize(("name", "corrected"), [("M/D/2, slow", True), ("batches of 16", False)])
def test_chance_in_the_arrivals_is_taken_out_where_requests_are_not_merged(
    name: str, corrected: bool
) -> None:
    found = search(replace(SERVERS[name], plans=[])).valid_measurement
    assert all((level.arrival_effect != 0) == corrected for level in found.open_loop)


def test_several_streams_share_the_load_by_demand() -> None:
    result = search(SimulatedServer(workload(500, 300.0, 100.0)))
    assert result.outcome == "ok"
    assert result.valid_measurement.capacity_per_second == pytest.approx(190, rel=0.01)
    first, second = result.valid_measurement.levels[-1].streams
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
    assert result.outcome == "infeasible"
    assert result.limit_overshoot == pytest.approx(0.1, abs=0.02)
    assert result.valid_measurement.ended.endswith("requests failed: INTERNAL: boom")


def test_a_level_of_nothing_but_errors_is_a_transient_failure() -> None:
    server = SimulatedServer(workload(500))
    with pytest.raises(LoadTestFailure, match="every request failed: INTERNAL: boom") as caught:
        find_capacity(lambda plan: with_errors(server(plan), 1), server.work, PROTOCOL, 64)
    assert caught.value.transient


def test_a_growing_backlog_is_not_capacity_however_lax_the_limit() -> None:
    server = SimulatedServer(workload(60_000))
    overload = server(LevelPlan(OpenLoop(0.5), 1, 8, 60))
    assert overload.meets_limits
    assert "more requests were waiting after" in str(why_missed(overload))

"""The client process, against a server that misbehaves in every way known."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from types import FrameType

import grpc
import numpy as np
import psutil
import pytest

from optimizer.errors import LoadTestFailure
from optimizer.load import client as client_module
from optimizer.load.client import LoadClient
from optimizer.load.exchange import LevelProgress
from optimizer.load.level_plan import ClosedLoop, EndReason, LevelPlan, OpenLoop
from optimizer.load.user_load import Phase, UserLoad
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import why_void
from tests.unit.fake_triton import BODIES, RATE, FakeTriton, Serve, at_once, target

pytestmark = pytest.mark.serial


@pytest.fixture(scope="module")
def client() -> Iterator[LoadClient]:
    with LoadClient() as started:
        yield started


def plan(
    load: ClosedLoop | OpenLoop | UserLoad | None = None,
    seconds: float = 0.8,
    timeout_seconds: float = 5.0,
) -> LevelPlan:
    return LevelPlan(load or OpenLoop(1.0), 0.2, seconds, timeout_seconds)


def run(client: LoadClient, endpoint: str, level_plan: LevelPlan) -> LoadLevel:
    return client.run_level(level_plan, target(endpoint), np.random.default_rng(5))


def test_open_loop_sends_every_request_when_it_is_due(client: LoadClient, serve: Serve) -> None:
    server = serve(lambda _: time.sleep(0.02))
    level = run(client, server.endpoint, plan())
    [only] = level.streams
    assert level.errors == 0
    assert only.completed == only.sent
    assert only.offered_per_second == pytest.approx(RATE, rel=0.3)
    assert only.latency_ms(50) >= 20
    assert level.client.lag_ms < 200
    assert level.client.cpu_seconds > 0
    assert level.client.memory_mib > 1
    assert set(server.bodies) == set(BODIES)


def test_latency_counts_the_wait_for_a_server_that_is_too_slow(
    client: LoadClient, serve: Serve
) -> None:
    turn = threading.Lock()

    def one_at_a_time(_: grpc.ServicerContext) -> None:
        with turn:
            time.sleep(0.015)

    level = run(client, serve(one_at_a_time).endpoint, plan())
    assert level.streams[0].latency_ms(99) > 150
    assert level.achieved_per_second < level.streams[0].offered_per_second


def test_a_closed_loop_keeps_its_number_outstanding(client: LoadClient, serve: Serve) -> None:
    server = serve(lambda _: time.sleep(0.02))
    level = run(client, server.endpoint, plan(ClosedLoop(4)))
    assert server.most_waiting == 4
    assert level.kind == "saturation"
    assert level.load_factor == pytest.approx(level.achieved_per_second / RATE)
    assert 60 < level.achieved_per_second <= 210
    assert sum(part.completed for part in level.slices) > 0


def test_users_come_think_and_leave(client: LoadClient, serve: Serve) -> None:
    server = serve(lambda _: time.sleep(0.02))
    # 2 users, and 2 more a second for 1 s: 4 at the end; each cycle takes 0.1 s.
    users = UserLoad((Phase(2, 120, 1.0), Phase(1, 0, 1.0)), think_seconds=0.08)
    level = client.run_level(
        LevelPlan(users, 0.0, users.seconds, 5.0), target(server.endpoint), np.random.default_rng(5)
    )
    assert level.kind == "user_load"
    assert level.errors == 0
    assert server.most_waiting <= 3
    # 2 users for half a second, 3 for another, then 1 for a second.
    assert level.streams[0].sent == pytest.approx(10 * (2 * 0.5 + 3 * 0.5 + 1), abs=8)


def test_a_stopping_rule_ends_a_level_while_it_runs(client: LoadClient, serve: Serve) -> None:
    server = serve(at_once)
    seen: list[int] = []

    def stop(progress: LevelProgress) -> EndReason | None:
        seen.append(len(progress.replies.due_seconds))
        return EndReason("enough") if progress.now_seconds > 1 else None

    started = time.monotonic()
    level = client.run_level(
        replace(plan(seconds=30), stop=stop), target(server.endpoint), np.random.default_rng(5)
    )
    assert time.monotonic() - started < 10
    assert level.ended == "enough"
    assert level.seconds < 2
    assert seen == sorted(seen)
    assert level.streams[0].sent == pytest.approx(RATE * level.seconds, rel=0.5)


def test_a_level_with_too_much_lag_is_void_and_run_again(client: LoadClient, serve: Serve) -> None:
    server = serve(at_once)
    stopped: list[LevelProgress] = []
    lagging = replace(plan(seconds=0.5), longest_lag_ms=0.0, stop=stopped.append)
    level = run(client, server.endpoint, lagging)
    assert not level.client.kept_up
    assert level.client.processes == 1, "it was not busy: more of them would lag as much"
    assert sum(later.now_seconds < one.now_seconds for one, later in pairwise(stopped)) == 1


def test_a_busy_client_that_lags_gets_another_process_and_a_level_that_stays_void_says_so(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_BUSY", 0.0)
    server = serve(at_once)
    with LoadClient(sorted(os.sched_getaffinity(0))[:2]) as client:
        level = client.run_level(
            replace(plan(), longest_lag_ms=0.0), target(server.endpoint), np.random.default_rng(5)
        )
        assert level.client.processes == len(client.pids) == min(2, os.cpu_count() or 1)
    assert not level.client.kept_up
    assert not level.meets_limits
    assert "the load generator fell" in str(why_void(level))
    [only] = level.streams
    assert only.completed == only.sent
    assert only.offered_per_second == pytest.approx(RATE, rel=0.4)


def test_errors_are_counted_with_their_first_message(client: LoadClient, serve: Serve) -> None:
    numbers = iter(range(10_000))

    def tenth_fails(context: grpc.ServicerContext) -> None:
        if next(numbers) % 10 == 0:
            context.abort(grpc.StatusCode.INTERNAL, "boom")

    [only] = run(client, serve(tenth_fails).endpoint, plan()).streams
    assert only.errors == pytest.approx(only.sent / 10, abs=2)
    assert only.first_error == "INTERNAL: boom"
    assert only.completed == only.sent - only.errors


def test_a_server_that_fails_every_request_does_not_spin_the_loop(
    client: LoadClient, serve: Serve
) -> None:
    server = serve(lambda context: context.abort(grpc.StatusCode.INTERNAL, "boom"))
    level = run(client, server.endpoint, plan(ClosedLoop(8)))
    assert level.errors == level.streams[0].sent
    assert level.errors <= 100


def test_a_hung_server_ends_the_level_at_the_deadline(client: LoadClient, serve: Serve) -> None:
    released = threading.Event()

    def hang(_: grpc.ServicerContext) -> None:
        released.wait(20)

    server = serve(hang)
    started = time.monotonic()
    level = run(client, server.endpoint, plan(timeout_seconds=0.5))
    taken = time.monotonic() - started
    released.set()
    assert taken < 3
    assert level.errors == level.streams[0].sent
    assert str(level.streams[0].first_error).startswith("DEADLINE_EXCEEDED")


def test_a_request_whose_deadline_passed_before_it_was_sent_is_an_error(
    client: LoadClient, serve: Serve
) -> None:
    server = serve(at_once)
    level = run(client, server.endpoint, plan(timeout_seconds=0))
    assert level.errors == level.streams[0].sent
    assert str(level.streams[0].first_error).startswith("NOT_SENT: the load client fell behind")
    assert server.bodies == []


def test_a_server_that_dies_ends_the_level_early(client: LoadClient, serve: Serve) -> None:
    server = serve(at_once)
    killer = threading.Timer(0.5, server.die)
    killer.start()
    started = time.monotonic()
    with pytest.raises(LoadTestFailure, match=r"refused every request.*UNAVAILABLE") as caught:
        run(client, server.endpoint, plan(seconds=20))
    killer.join()
    assert time.monotonic() - started < 5
    assert caught.value.transient


def test_a_server_whose_queue_is_full_is_not_gone(client: LoadClient, serve: Serve) -> None:
    def reject(context: grpc.ServicerContext) -> None:
        context.abort(grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")

    level = run(client, serve(reject).endpoint, plan(seconds=2))
    assert level.seconds == 2
    assert (level.rejected, level.errors) == (level.streams[0].sent, 0)


@pytest.mark.parametrize("load", [OpenLoop(1.0), ClosedLoop(4)], ids=["open", "closed"])
def test_nobody_at_the_endpoint_is_found_out_early(
    client: LoadClient, serve: Serve, load: OpenLoop | ClosedLoop
) -> None:
    server = serve(at_once)
    server.die()
    started = time.monotonic()
    with pytest.raises(LoadTestFailure, match="refused"):
        run(client, server.endpoint, plan(load, seconds=20))
    assert time.monotonic() - started < 5


def test_a_dropped_connection_costs_errors_and_the_level_goes_on(
    client: LoadClient, serve: Serve
) -> None:
    first = serve(at_once)
    restarted: list[FakeTriton] = []

    def restart() -> None:
        first.die()
        time.sleep(0.2)
        restarted.append(FakeTriton(port=first.port))

    timer = threading.Timer(0.5, restart)
    timer.start()
    [only] = run(client, first.endpoint, plan(seconds=2)).streams
    timer.join()
    restarted[0].die()
    assert 0 < only.errors < only.sent / 2
    assert restarted[0].bodies


def test_a_killed_client_is_a_failure_and_the_next_level_has_a_new_one(serve: Serve) -> None:
    server = serve(at_once)
    with LoadClient() as client:
        [before] = client.pids
        killer = threading.Timer(1.5, os.kill, (before, signal.SIGKILL))
        killer.start()
        with pytest.raises(LoadTestFailure, match="ended with status -9") as caught:
            run(client, server.endpoint, plan(seconds=20))
        assert caught.value.transient
        assert not client.pids
        assert run(client, server.endpoint, plan()).errors == 0
        assert client.pids != (before,)


def test_a_client_found_dead_is_started_again(serve: Serve) -> None:
    with LoadClient() as client:
        [pid] = client.pids
        os.kill(pid, signal.SIGKILL)
        psutil.Process(pid).wait(5)
        assert run(client, serve(at_once).endpoint, plan()).errors == 0


def test_a_hung_client_is_killed(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_MARGIN_SECONDS", 0.2)
    with LoadClient() as client:
        [pid] = client.pids
        os.kill(pid, signal.SIGSTOP)
        many = target("host:1", (bytes(1_000_000),))
        with pytest.raises(LoadTestFailure, match="the load client hung"):
            client.run_level(plan(timeout_seconds=0.1), many, np.random.default_rng(0))
        assert client.pids == ()


def test_a_defect_of_the_client_comes_back_with_its_traceback(client: LoadClient) -> None:
    with pytest.raises(LoadTestFailure, match=r"(?s)the load client failed.*ZeroDivisionError"):
        client.run_level(plan(), target("127.0.0.1:1", ()), np.random.default_rng(0))


def test_an_interrupted_level_leaves_nothing_behind(serve: Serve) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    server = serve(at_once)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with LoadClient() as client:
            signal.setitimer(signal.ITIMER_REAL, 0.5)
            with pytest.raises(KeyboardInterrupt):
                run(client, server.endpoint, plan(seconds=20))
            assert client.pids == ()
            assert run(client, server.endpoint, plan()).errors == 0
    finally:
        signal.signal(signal.SIGALRM, before)


def test_the_client_keeps_to_its_cores_and_hears_no_keyboard(serve: Serve) -> None:
    core = min(os.sched_getaffinity(0))
    with LoadClient([core]) as client:
        run(client, serve(at_once).endpoint, plan())
        [pid] = client.pids
        assert os.sched_getaffinity(pid) == {core}
        assert os.getsid(pid) == pid


PARENT = """
import sys, numpy as np
from tests.unit.test_load_client import LoadClient, plan, run
client = LoadClient()
client.start()
print(*client.pids, flush=True)
run(client, sys.argv[1], plan(seconds=30))
"""


def ended(process: psutil.Process) -> bool:
    """Whether it is gone, or waits only for its new parent to notice."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("sending", [False, True], ids=["while it starts", "in mid-level"])
def test_the_client_never_outlives_its_parent(serve: Serve, sending: bool) -> None:
    server = serve(at_once)
    command = [sys.executable, "-c", PARENT, server.endpoint]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        client = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: bool(server.bodies) or not sending)
        parent.kill()
    wait_until(lambda: ended(client))

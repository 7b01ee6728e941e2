"""A search for the capacity against a server that fails: a typed outcome, in bounded time."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import grpc
import numpy as np
import pytest

from optimizer.errors import LoadTestFailure
from optimizer.load.capacity import CapacityProtocol, find_capacity
from optimizer.load.client import LoadClient
from optimizer.measurement.evaluation import Evaluation
from optimizer.workload.streams import Workload
from tests.unit.fake_triton import FakeTriton, Serve, target

pytestmark = [pytest.mark.serial, pytest.mark.slow]

DEMAND = 100.0
PROTOCOL = CapacityProtocol(
    saturation_seconds=1.5,
    check_seconds=1.0,
    warmup_seconds=0.2,
    saturation_timeout_seconds=1.0,
    check_timeout_seconds=1.0,
    check_requests=50,
    load_seconds=4.0,
    load_requests=100,
)
BOUND_SECONDS = 25.0
"""Load for 4 s, a timeout for each of 12 levels at most, and a slow machine."""


@pytest.fixture(scope="module")
def client() -> Iterator[LoadClient]:
    with LoadClient() as started:
        yield started


def search(client: LoadClient, endpoint: str) -> Evaluation:
    """Find the capacity of a fake Triton, at most 200/s by its 8 outstanding requests."""
    at = target(endpoint, demand_per_second=DEMAND)
    rng = np.random.default_rng(3)
    work = Workload((at.streams[0].stream,))
    started = time.monotonic()
    try:
        return find_capacity(
            lambda plan: client.run_level(plan, at, rng), work, PROTOCOL, concurrency=8
        )
    finally:
        assert time.monotonic() - started < BOUND_SECONDS


def busy(context: grpc.ServicerContext) -> None:
    time.sleep(0.04)


def fail(context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.INTERNAL, "boom")


def test_a_sound_server_has_a_capacity(client: LoadClient, serve: Serve) -> None:
    result = search(client, serve(busy).endpoint)
    assert result.outcome == "ok"
    assert 50 < result.valid_measurement.capacity_per_second <= 200


def test_a_server_that_is_slower_than_the_limit_is_infeasible(
    client: LoadClient, serve: Serve
) -> None:
    result = search(client, serve(lambda _: time.sleep(0.15)).endpoint)
    assert result.outcome == "infeasible"
    assert "over the limit of 100 ms" in result.valid_measurement.ended


def test_one_error_in_a_hundred_is_infeasible_and_named(client: LoadClient, serve: Serve) -> None:
    numbers = itertools.count()

    def hundredth_fails(context: grpc.ServicerContext) -> None:
        busy(context)
        if next(numbers) % 100 == 0:
            fail(context)

    result = search(client, serve(hundredth_fails).endpoint)
    # A level of fifty requests may be spared.
    if result.outcome == "infeasible":
        assert "requests failed: INTERNAL: boom" in result.valid_measurement.ended
    assert any(level.errors for level in result.valid_measurement.levels)


def test_nothing_but_errors_is_a_failure(client: LoadClient, serve: Serve) -> None:
    with pytest.raises(LoadTestFailure, match="every request failed: INTERNAL: boom"):
        search(client, serve(fail).endpoint)


def test_a_server_that_hangs_from_the_start_is_a_failure(client: LoadClient, serve: Serve) -> None:
    released = threading.Event()

    def hang(_: grpc.ServicerContext) -> None:
        released.wait(30)

    try:
        with pytest.raises(LoadTestFailure, match="DEADLINE_EXCEEDED"):
            search(client, serve(hang).endpoint)
    finally:
        released.set()


def test_a_server_that_begins_to_hang_does_not_hang_the_search(
    client: LoadClient, serve: Serve
) -> None:
    released, hangs_at = threading.Event(), time.monotonic() + 2.5

    def hang_later(context: grpc.ServicerContext) -> None:
        if time.monotonic() > hangs_at:
            released.wait(30)
        busy(context)

    try:
        with pytest.raises(LoadTestFailure, match="DEADLINE_EXCEEDED"):
            search(client, serve(hang_later).endpoint)
    finally:
        released.set()


def test_a_server_that_restarts_in_a_level_costs_that_level(
    client: LoadClient, serve: Serve
) -> None:
    first = serve(busy)
    restarted: list[FakeTriton] = []

    def restart() -> None:
        first.die()
        time.sleep(0.2)
        restarted.append(FakeTriton(busy, port=first.port))

    timer = threading.Timer(2.5, restart)
    timer.start()
    try:
        result = search(client, first.endpoint)
    finally:
        timer.join()
        restarted[0].die()
    assert result.outcome == "ok"
    # A level that misses its limit by errors ends at once, and the server may not be back yet.
    assert sum(level.errors > 0 for level in result.valid_measurement.levels) in (1, 2)


class ResettingProxy:
    """A way to the server on which every connection is reset again and again."""

    def __init__(self, port: int, every_seconds: float) -> None:
        self._port = port
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [
            threading.Thread(target=self._accept),
            threading.Thread(target=self._reset, args=[every_seconds]),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._port))
                self._pairs.append((near, far))
                for source, sink in ((near, far), (far, near)):
                    copier = threading.Thread(target=self._copy, args=[source, sink])
                    copier.start()
                    self._threads.append(copier)

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)

    def _reset(self, every_seconds: float) -> None:
        while not self._over.wait(every_seconds):
            self._cut()
        self._cut()

    def _cut(self) -> None:
        while self._pairs:
            near, far = self._pairs.pop()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for end in (near, far):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RD)  # wakes its copier
                end.close()


def test_connections_that_are_reset_all_the_time_end_in_an_outcome(
    client: LoadClient, serve: Serve
) -> None:
    proxy = ResettingProxy(serve(busy).port, every_seconds=0.3)
    outcome: Evaluation | LoadTestFailure
    try:
        outcome = search(client, proxy.endpoint)
    except LoadTestFailure as failure:
        outcome = failure
    finally:
        proxy.close()
    if isinstance(outcome, LoadTestFailure):
        # Of the lowest level's few requests all may be cut off: then nothing at all was answered.
        assert "every request failed: UNAVAILABLE" in str(outcome)
        return
    # A level of ten requests may pass between two resets, one of a hundred cannot.
    assert outcome.valid_measurement.capacity_per_second < DEMAND / 5
    assert str(outcome.valid_measurement.levels[0].streams[0].first_error).startswith("UNAVAILABLE")

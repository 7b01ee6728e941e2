"""The process that sends requests, kept apart so that nothing else disturbs its timing.

Started by `optimizer.load.client`: `python -m optimizer.load.client_process FD PARENT_PID CORES`.
It reads orders from the connection FD and answers each with its replies, or with the text of a
traceback. It ends with the connection, and by the kernel's hand with its parent.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
import traceback
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue

import grpc
import numpy as np

from optimizer.child_shim import die_with_parent
from optimizer.load.exchange import Order, Outstanding, Replies

METHOD = "/inference.GRPCInferenceService/ModelInfer"

_REFUSED_SECONDS = 1.0
"""A server that refuses every request for this long is gone, and the level ends."""

_PAUSE_AFTER_ERROR_SECONDS = 0.01
"""Keeps a closed loop from spinning against a server that refuses at once."""

_CHANNEL_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A connection of its own for every level: none inherits the last one's backoff.
    ("grpc.use_local_subchannel_pool", 1),
)

# Decision 2026-11-23: the synchronous stub's `.future()` with a callback, one channel, bytes in and
# bytes out. Against a real Triton 2.51 (identity model, sequence 128), client alone on one core:
#
#     requests/s   | p99 lag ms: future  aio   64 threads | CPU s per 1,000: future  aio   threads
#     500          |             0.38    1.88  0.29       |                  0.36    0.25  0.27
#     1000         |             0.27    1.11  0.28       |                  0.25    0.22  0.23
#     1500         |             1.53    1.13  1.73       |                  0.25    0.19  0.19
#
# asyncio's timers wake about 0.5 ms late at the median (future: 0.08 ms), and a pool of threads
# caps the requests outstanding, which closes the loop under overload. The price is CPU: this client
# was the dearest in every row.


class _Level:
    """One level under way. The main thread sends; gRPC's thread notes the replies."""

    def __init__(self, order: Order, infer: grpc.UnaryUnaryMultiCallable[bytes, bytes]) -> None:
        self._order = order
        self._infer = infer
        self._streams: list[int] = order.streams.tolist()
        self._used = [0] * len(order.prepared)
        self._replied: SimpleQueue[int] = SimpleQueue()
        self._answered = 0
        self._refused_since: float | None = None
        self._refused_at: float | None = None
        self._due: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._errors: dict[int, str] = {}
        self._start = time.perf_counter()

    def run(self) -> Replies:
        """Send everything, wait for the last reply or its deadline, and report."""
        if isinstance(self._order.pace, Outstanding):
            self._keep_outstanding(self._order.pace)
        else:
            self._follow(self._order.pace.due_seconds.tolist())
        while self._answered < len(self._sent):
            self._next_reply()
        return self._report()

    def _follow(self, due_seconds: list[float]) -> None:
        for due in due_seconds:
            wait = due - self._now()
            if wait > 0:
                time.sleep(wait)
            if self._refused():
                return
            self._send(due)

    def _keep_outstanding(self, pace: Outstanding) -> None:
        for _ in range(pace.count):
            self._send(self._now())
        while True:
            index = self._next_reply()
            if index in self._errors:
                time.sleep(_PAUSE_AFTER_ERROR_SECONDS)
            if self._now() >= pace.seconds or self._refused():
                return
            self._send(self._now())

    def _send(self, due: float) -> None:
        index = len(self._sent)
        now = self._now()
        self._due.append(due)
        self._sent.append(now)
        self._done.append(now)
        remaining = due + self._order.timeout_seconds - now
        if remaining <= 0:
            self._errors[index] = "NOT_SENT: the load client fell behind by the whole timeout"
            self._replied.put(index)
            return
        call = self._infer.future(self._payload(index), timeout=remaining)
        call.add_done_callback(partial(self._note, index))

    def _payload(self, index: int) -> bytes:
        stream = self._streams[index % len(self._streams)]
        pool = self._order.prepared[stream]
        self._used[stream] += 1
        return pool[self._used[stream] % len(pool)]

    def _note(self, index: int, call: grpc.Future[bytes]) -> None:
        now = self._now()
        assert isinstance(call, grpc.Call)
        code = call.code()
        self._done[index] = now
        if code is not grpc.StatusCode.OK:
            self._errors[index] = f"{code.name}: {call.details()}"
        if code is not grpc.StatusCode.UNAVAILABLE:
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        self._replied.put(index)

    def _next_reply(self) -> int:
        # Never waits for ever: every request has a deadline.
        index = self._replied.get()
        self._answered += 1
        return index

    def _refused(self) -> bool:
        since = self._refused_since
        if since is not None and self._now() - since > _REFUSED_SECONDS:
            self._refused_at = self._now()
        return self._refused_at is not None

    def _now(self) -> float:
        return time.perf_counter() - self._start

    def _report(self) -> Replies:
        return Replies(
            streams=np.resize(self._order.streams, len(self._sent)),
            due_seconds=np.array(self._due),
            sent_seconds=np.array(self._sent),
            done_seconds=np.array(self._done),
            errors=self._errors,
            refused_at_seconds=self._refused_at,
        )


def run_order(order: Order) -> Replies:
    """Send one level's requests over a connection of its own."""
    with grpc.insecure_channel(order.endpoint, options=_CHANNEL_OPTIONS) as channel:
        return _Level(order, channel.unary_unary(METHOD, None, None)).run()


def serve(connection: Connection) -> None:
    """Carry out orders until the other end is closed."""
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        try:
            answer: Replies | str = run_order(order)
        except Exception:  # noqa: BLE001 - the parent turns it into a LoadTestFailure
            answer = traceback.format_exc()
        connection.send(answer)


def main(arguments: list[str]) -> None:
    """Enter the process: tie it to its parent and its cores, then serve."""
    descriptor, parent_pid, cores = arguments
    die_with_parent(int(parent_pid), signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    gc.freeze()  # what is imported by now need not be walked during a level
    serve(Connection(int(descriptor)))


if __name__ == "__main__":
    main(sys.argv[1:])

"""A process that only sends requests, so that nothing else disturbs its timing.

Started by `optimizer.load.client`: `python -m optimizer.load.client_process FD PARENT_PID CORES`.
It reads orders from the connection FD. It answers an `Order` with `Ready`, and the `Begin` after it
with a `Report` several times a second until the last one; it answers with the text of a traceback
after a defect. It ends with the connection, and the kernel ends it with its parent.
"""

from __future__ import annotations

import gc
import heapq
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import partial
from itertools import chain
from multiprocessing.connection import Connection
from queue import Empty, SimpleQueue

import numpy as np
import psutil

from optimizer.load.exchange import Begin, Order, Ready, Replies, Report, Schedule, Stop, Users
from optimizer.load.transmit import REFUSED, TRANSMITTERS, Transmitter, is_rejection
from optimizer.machine.child_shim import die_with_parent

_REFUSED_SECONDS = 1.0
"""A level ends where the server refuses every request for so long: it is gone."""

_PAUSE_AFTER_ERROR_SECONDS = 0.1
"""Pause of a user whose request failed, which keeps a closed loop from spinning."""

_REPORT_TAKES_SECONDS = 0.002
"""A report waits for a gap of this length between requests, for one reporting period at most."""


class _Level:
    """A running level. The main thread sends and reports; the transmitter records the replies."""

    def __init__(self, order: Order, transmitter: Transmitter, connection: Connection) -> None:
        self._order = order
        self._transmitter = transmitter
        self._connection = connection
        self._streams: list[int] = order.streams.tolist()
        self._numbers = [sequence.numbers() for sequence in order.sequences]
        self._exhausted = False
        self._replied: SimpleQueue[int] = SimpleQueue()
        self._answered: list[int] = []
        self._reported = 0
        self._refused_since: float | None = None
        self._refused_at: float | None = None
        self._stopped = False
        self._due: list[float] = []
        self._sent: list[float] = []
        self._done: list[float] = []
        self._errors: dict[int, str] = {}
        self._start = 0.0
        self._report_at = order.report_seconds
        self._process = psutil.Process()
        self._cpu_before = 0.0

    def run(self, begin: float) -> None:
        """Send everything, wait for the last reply or its deadline, and report."""
        self._start, self._cpu_before = begin, time.process_time()
        if isinstance(self._order.sending, Schedule):
            self._follow(self._order.sending.due_seconds.tolist())
        else:
            _Users(self._order.sending, self).run()
        while len(self._answered) < len(self._sent):
            self.next_reply(until=float("inf"))
        self._report(last=True)

    @property
    def over(self) -> bool:
        """Whether nothing more shall be sent."""
        since = self._refused_since
        if self._refused_at is None and since is not None:
            now = self.now()
            self._refused_at = now if now - since > _REFUSED_SECONDS else None
        return self._stopped or self._exhausted or self._refused_at is not None

    def now(self) -> float:
        """Return the seconds since the start of the level."""
        return time.perf_counter() - self._start

    def send(self, due: float) -> None:
        """Send the next request, which was due at `due`; nothing where there are no more."""
        index = len(self._sent)
        stream = self._streams[index % len(self._streams)]
        number = next(self._numbers[stream], None)
        if number is None:
            self._exhausted = True
            return
        pool = self._order.prepared[stream]
        request = pool[number % len(pool)].numbered(number // len(pool))
        now = self.now()
        self._due.append(due)
        self._sent.append(now)
        self._done.append(now)
        remaining = due + self._order.timeout_seconds - now
        if remaining <= 0:
            self._errors[index] = "NOT_SENT: the load client fell behind by the whole timeout"
            self._replied.put(index)
            return
        self._transmitter.send(request, remaining, partial(self._record, index))

    def next_reply(self, until: float) -> tuple[float, bool] | None:
        """Return when the next reply came and whether it is good; None where none came in time."""
        while True:
            self.report_if_due(until)
            wait = min(until, self._report_at) - self.now()
            try:
                index = self._replied.get(timeout=max(wait, 0.0))
            except Empty:
                if self.now() >= until:
                    return None
                continue
            self._answered.append(index)
            return self._done[index], index not in self._errors

    def report_if_due(self, next_at: float) -> None:
        """Send a report if one is due and no request is due right now."""
        now = self.now()
        late = now - self._report_at
        if late < 0 or (
            next_at - now < _REPORT_TAKES_SECONDS and late < self._order.report_seconds
        ):
            return
        self._report(last=False)
        if self._connection.poll():
            assert isinstance(self._connection.recv(), Stop)
            self._stopped = True

    def _follow(self, due_seconds: list[float]) -> None:
        for due in due_seconds:
            self._wait_until(due)
            if self.over:
                return
            self.send(due)

    def _wait_until(self, due: float) -> None:
        while not self._stopped:
            while not self._replied.empty():
                self._answered.append(self._replied.get())
            self.report_if_due(due)
            now = self.now()
            if now >= due:
                return
            time.sleep((due if self._report_at <= now else min(due, self._report_at)) - now)

    def _record(self, index: int, error: str | None) -> None:
        now = self.now()
        self._done[index] = now
        if error is not None:
            self._errors[index] = error
        if error is None or not error.startswith(REFUSED) or is_rejection(error):
            self._refused_since = None
        elif self._refused_since is None:
            self._refused_since = now
        self._replied.put(index)

    def _report(self, *, last: bool) -> None:
        new = self._answered[self._reported :]
        self._reported = len(self._answered)
        streams = np.asarray(self._streams)
        now = self.now()
        replies = Replies(
            streams=streams[np.asarray(new, dtype=np.int64) % len(streams)],
            due_seconds=np.array([self._due[index] for index in new]),
            sent_seconds=np.array([self._sent[index] for index in new]),
            done_seconds=np.array([self._done[index] for index in new]),
            errors={n: self._errors[at] for n, at in enumerate(new) if at in self._errors},
            refused_at_seconds=self._refused_at,
        )
        cpu = time.process_time() - self._cpu_before
        memory = self._process.memory_info().rss
        self._connection.send(Report(now, replies, last, cpu, memory))
        self._report_at = now + self._order.report_seconds


class _Users:
    """Users who wait for a reply or think; never more than one request of each outstanding."""

    def __init__(self, users: Users, level: _Level) -> None:
        self._users = users
        self._level = level
        self._changes = list(
            zip(users.at_seconds.tolist(), users.counts.tolist(), strict=True),
        )[::-1]
        self._wanted = 0
        self._waiting = 0
        self._thinking: list[float] = []

    def run(self) -> None:
        """Send the users' requests until the time is up or the level is over."""
        level, users = self._level, self._users
        while not level.over and level.now() < users.seconds:
            self._change_users()
            if self._thinking and self._thinking[0] <= level.now():
                self._waiting += 1
                level.send(heapq.heappop(self._thinking))
                level.report_if_due(next_at=self._next())
                continue
            reply = level.next_reply(until=self._next())
            if reply is not None:
                self._take(*reply)

    def _next(self) -> float:
        """Return when the next event happens that is no reply."""
        change = self._changes[-1][0] if self._changes else self._users.seconds
        return min(chain(self._thinking[:1], [change, self._users.seconds]))

    def _change_users(self) -> None:
        while self._changes and self._changes[-1][0] <= self._level.now():
            at, self._wanted = self._changes.pop()
            for _ in range(self._wanted - self._waiting - len(self._thinking)):
                heapq.heappush(self._thinking, at)
            leaving = min(len(self._thinking), self._waiting + len(self._thinking) - self._wanted)
            if leaving > 0:
                self._thinking = sorted(self._thinking)[:-leaving]

    def _take(self, at: float, good: bool) -> None:
        self._waiting -= 1
        if self._waiting + len(self._thinking) >= self._wanted:
            return
        pause = 0.0 if good else _PAUSE_AFTER_ERROR_SECONDS
        heapq.heappush(self._thinking, at + max(self._users.think_seconds, pause))


def run_order(order: Order, connection: Connection) -> None:
    """Send one level's requests over a connection of its own."""
    transmitter = TRANSMITTERS[order.protocol](order.endpoint)
    try:
        level = _Level(order, transmitter, connection)
        connection.send(Ready(os.sched_getscheduler(0) == os.SCHED_RR))
        begin = connection.recv()
        assert isinstance(begin, Begin)
        level.run(begin.at)
    finally:
        transmitter.close()


def serve(connection: Connection) -> None:
    """Carry out orders until the other end is closed."""
    while True:
        try:
            order = connection.recv()
        except EOFError:
            return
        if isinstance(order, Stop):
            continue  # it crossed the last report
        try:
            run_order(order, connection)
        except EOFError:
            return
        except Exception:  # noqa: BLE001 - the parent turns it into a LoadTestFailure
            connection.send(traceback.format_exc())
        del order  # its requests may be large, and the next order has them again


def _take_realtime_priority() -> None:
    """Take real-time priority, where that is permitted: root, or RLIMIT_RTPRIO above 0.

    On cores shared with a busy server, a client of ordinary priority is late by whole time slices.
    Decision 2026-11-24, two cores, OpenVINO int8 in two instances at 1,700 requests/s (85 % of
    saturation): p99 lag 12 to 60 ms, with nice -10 11 to 77 ms, with real-time priority 0.3 ms.
    """
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))


def main(arguments: list[str]) -> None:
    """Bind the process to its parent and its cores, then serve."""
    descriptor, parent_pid, cores = arguments
    die_with_parent(int(parent_pid), signal.SIGKILL)
    if cores:
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    _take_realtime_priority()
    gc.freeze()  # the collector need not walk imported modules during a level
    serve(Connection(int(descriptor)))


if __name__ == "__main__":
    main(sys.argv[1:])

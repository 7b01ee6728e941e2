"""The load generator: client processes that outlive levels, but never their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from threading import Timer

import numpy as np

from optimizer.errors import LoadTestFailure
from optimizer.files.shipped import import_folder
from optimizer.load.exchange import (
    Begin,
    LevelProgress,
    Order,
    Ready,
    Replies,
    Report,
    Schedule,
    Stop,
)
from optimizer.load.level_plan import EndReason, LevelPlan, Target
from optimizer.load.levels import load_level
from optimizer.load.schedule import order_for, shares
from optimizer.machine.cores import usable_cores
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.resource_use import ClientUse

_MARGIN_SECONDS = 10.0
"""Extra time of a level for processes to start and for their reports to arrive."""

_LEAD_SECONDS = 0.02
"""Time from the last process being ready to the start of the level."""

_BUSY = 0.6
"""Share of a core; a process that lags and uses less lacks a core, not more processes."""

_MIB = 2**20


class _ClientProcess:
    """A running process and the connection to it."""

    def __init__(self, cores: Sequence[int] | None) -> None:
        self.hung = False
        self.connection, theirs = Pipe()
        # In memory: a full disk must not stop the client. Closed in close().
        self.stderr = os.fdopen(os.memfd_create("load client"), "w+b")
        command = [sys.executable, "-m", "optimizer.load.client_process", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(
                [*command, str(os.getpid()), ",".join(map(str, cores or ()))],
                cwd=import_folder(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                # Ctrl-C and the terminal's hang-up are the parent's to handle.
                start_new_session=True,
            )

    def send(self, message: Order | Begin | Stop) -> None:
        """Send a message. Raises LoadTestFailure where the process has ended."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise LoadTestFailure(self._end_reason()) from error

    def receive(self) -> Ready | Report:
        """Wait for a message. Raises LoadTestFailure where the process has ended or failed."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise LoadTestFailure(self._end_reason()) from error
        if isinstance(answer, Ready | Report):
            return answer
        raise LoadTestFailure(f"the load client failed:\n{answer}")

    def kill_hung(self) -> None:
        """Kill the process because it does not answer."""
        self.hung = True
        self.popen.kill()

    def _end_reason(self) -> str:
        if self.hung:
            return "the load client hung and was killed after the longest time that a level takes"
        status = self.popen.wait()
        self.stderr.seek(0)
        text = self.stderr.read().decode(errors="replace").strip()
        return f"the load client ended with status {status}" + (f": {text}" if text else "")

    def close(self) -> None:
        """Kill the process, reap it and close its connection."""
        self.popen.kill()
        self.popen.wait()
        self.connection.close()
        self.stderr.close()


class LoadClient:
    """Sends load levels from its own processes: one, and more where one cannot keep up.

    Dead processes are started again. Processes end with the thread that started them (a property of
    PR_SET_PDEATHSIG), so start them from one that lives as long.
    """

    def __init__(self, cores: Sequence[int] | None = None) -> None:
        """Pin the processes to these CPU cores; None permits the parent's cores."""
        self._cores = cores
        self._wanted = 1
        self._most = len(cores) if cores is not None else len(usable_cores())
        self._processes: list[_ClientProcess] = []
        self._sent = Counter[str]()

    def __enter__(self) -> LoadClient:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pids(self) -> tuple[int, ...]:
        """Process ids of the client."""
        return tuple(process.popen.pid for process in self._processes)

    def start(self) -> None:
        """Start the processes unless they run; their imports go on in the background."""
        if any(process.popen.poll() is not None for process in self._processes):
            self.close()
        while len(self._processes) < self._wanted:
            self._processes.append(_ClientProcess(self._cores))

    def close(self) -> None:
        """End the processes at once."""
        for process in self._processes:
            process.close()
        self._processes = []

    def run_level(self, plan: LevelPlan, target: Target, rng: np.random.Generator) -> LoadLevel:
        """Send one level and measure it.

        It takes at most warm-up, measured time, timeout and a fixed margin. Failed requests count,
        unless the server refuses all of them for a second: then it is gone. Where the client lags
        by more than the plan permits, the level is run again, with twice the processes if they were
        busy, up to one for each core. A level that still has too much lag shows it in
        `client.kept_up`.

        Raises:
            LoadTestFailure: when the server is gone, a client process died or hung (it is started
                again next time), or a stream had no request to measure.
        """
        attempts = 0
        while True:
            attempts += 1
            level, busy = self._run_once(plan, target, rng)
            more = min(2 * self._wanted, self._most) if busy else self._wanted
            if level.client.kept_up or (attempts > 1 and more == self._wanted):
                return level
            self._wanted = more

    def _run_once(
        self, plan: LevelPlan, target: Target, rng: np.random.Generator
    ) -> tuple[LoadLevel, bool]:
        """Return the level, and whether a process was so busy that more of them would help."""
        self.start()
        bound = plan.sending_seconds + plan.timeout_seconds + _MARGIN_SECONDS
        with self._watched(bound):
            order = order_for(plan, target, rng, self._sent)
            for process, share in zip(
                self._processes, shares(order, len(self._processes)), strict=True
            ):
                process.send(share)
            ready = [process.receive() for process in self._processes]
            begin = Begin(time.perf_counter() + _LEAD_SECONDS)
            for process in self._processes:
                process.send(begin)
            running = _RunningLevel(plan, order, self._processes)
            running.collect()
        # Each process takes every n-th number, however many the others send.
        sent = len(self._processes) * np.bincount(
            running.replies().streams, minlength=len(target.streams)
        )
        names = [stream.name for stream in target.plain_streams]
        self._sent.update(dict(zip(names, sent.tolist(), strict=True)))
        client = _client_use(plan, running, all(r.realtime for r in ready if isinstance(r, Ready)))
        streams, busy = target.plain_streams, running.busiest > _BUSY
        return load_level(plan, streams, running.replies(), client, running.stopped), busy

    @contextmanager
    def _watched(self, bound_seconds: float) -> Iterator[None]:
        """Kill processes that take longer; after a failed exchange, end all of them."""
        # A thread, because sending a large order to a hung process would block as well.
        watchdog = Timer(bound_seconds, self._kill_hung)
        watchdog.start()
        try:
            yield
        except BaseException:
            # An interrupted exchange leaves stale reports behind: begin afresh.
            self.close()
            raise
        finally:
            watchdog.cancel()

    def _kill_hung(self) -> None:
        for process in self._processes:
            process.kill_hung()


class _RunningLevel:
    """A level that client processes are sending, by their reports."""

    def __init__(self, plan: LevelPlan, order: Order, processes: Sequence[_ClientProcess]) -> None:
        self._plan = plan
        self._order = order
        self._by_connection = {process.connection: process for process in processes}
        self._reports: list[Report] = []
        self.last: list[Report] = []
        self.stopped: tuple[EndReason, float] | None = None

    def collect(self) -> None:
        """Collect reports until every process has sent its last; stop early where the plan says."""
        running = dict(self._by_connection)
        reported: dict[Connection, float] = {}
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                report = running[connection].receive()
                assert isinstance(report, Report)
                self._reports.append(report)
                reported[connection] = report.now_seconds
                if report.last:
                    self.last.append(report)
                    del running[connection]
            if len(reported) == len(self._by_connection) and running:
                self._apply_stopping_rule(min(reported.values()))
                reported = {} if len(running) == len(self._by_connection) else reported

    def _apply_stopping_rule(self, now: float) -> None:
        if self._plan.stop is None or self.stopped is not None:
            return
        sending, due, streams = self._order.sending, np.empty(0), np.empty(0, dtype=np.int64)
        if isinstance(sending, Schedule):
            due, streams = sending.due_seconds, self._order.streams
        ended = self._plan.stop(LevelProgress(now, self.replies(), due, streams))
        if ended is not None:
            self.stopped = ended, now
            for process in self._by_connection.values():
                process.send(Stop())

    @property
    def busiest(self) -> float:
        """Largest share of a core that a process used."""
        return max(report.cpu_seconds / report.now_seconds for report in self.last)

    def replies(self) -> Replies:
        """Return everything that was reported so far, in the order of due times."""
        parts = [report.replies for report in self._reports]
        due = np.concatenate([part.due_seconds for part in parts])
        order = np.argsort(due, kind="stable")
        errors: dict[int, str] = {}
        begin = 0
        for part in parts:
            errors |= {begin + at: text for at, text in part.errors.items()}
            begin += len(part.due_seconds)
        position = np.argsort(order) if errors else order
        refused = [p.refused_at_seconds for p in parts if p.refused_at_seconds is not None]
        return Replies(
            streams=np.concatenate([part.streams for part in parts])[order],
            due_seconds=due[order],
            sent_seconds=np.concatenate([part.sent_seconds for part in parts])[order],
            done_seconds=np.concatenate([part.done_seconds for part in parts])[order],
            errors=dict(sorted((int(position[at]), text) for at, text in errors.items())),
            refused_at_seconds=min(refused, default=None),
        )


def _client_use(plan: LevelPlan, running: _RunningLevel, realtime: bool) -> ClientUse:
    replies = running.replies()
    end = running.stopped[1] if running.stopped is not None else float("inf")
    inside = (replies.due_seconds >= plan.warmup_seconds) & (replies.due_seconds < end)
    lag = (replies.sent_seconds - replies.due_seconds)[inside] * 1e3
    return ClientUse(
        processes=len(running.last),
        cpu_seconds=sum(report.cpu_seconds for report in running.last),
        memory_mib=sum(report.memory_bytes for report in running.last) / _MIB,
        lag_ms=float(np.percentile(lag, 99)) if len(lag) else 0.0,
        longest_lag_ms=plan.longest_lag_ms,
        realtime=realtime,
    )

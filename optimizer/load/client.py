"""The parent's side of the load client: processes that outlive levels, never their parent."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from threading import Timer
from types import TracebackType

import numpy as np

from optimizer.errors import LoadTestFailure
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
from optimizer.measurement.level import ClientUse, LoadLevel

_MARGIN_SECONDS = 10.0
"""Time beyond a level's own for processes to start and for their reports to arrive."""

_LEAD_SECONDS = 0.02
"""From the last process being ready to the start of the level."""

_BUSY = 0.6
"""Share of a core: one that lags and uses less lags for want of a core, not of processes."""

_MIB = 2**20


class _ClientProcess:
    """A running process and the connection to it."""

    def __init__(self, cores: Sequence[int] | None) -> None:
        self.hung = False
        self.connection, theirs = Pipe()
        # In memory: a full disk must not stop the client. Closed in end().
        self.stderr = os.fdopen(os.memfd_create("load client"), "w+b")
        command = [sys.executable, "-m", "optimizer.load.client_process", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(
                [*command, str(os.getpid()), ",".join(map(str, cores or ()))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                # Ctrl-C and the terminal's hang-up are the parent's to handle.
                start_new_session=True,
            )

    def tell(self, message: Order | Begin | Stop) -> None:
        """Send a message. Raises LoadTestFailure where the process has ended."""
        try:
            self.connection.send(message)
        except OSError as error:
            raise LoadTestFailure(self._obituary()) from error

    def hear(self) -> Ready | Report:
        """Wait for a message. Raises LoadTestFailure where there will be none."""
        try:
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise LoadTestFailure(self._obituary()) from error
        if isinstance(answer, Ready | Report):
            return answer
        raise LoadTestFailure(f"the load client failed:\n{answer}")

    def give_up(self) -> None:
        """Kill the process because it does not answer."""
        self.hung = True
        self.popen.kill()

    def _obituary(self) -> str:
        if self.hung:
            return "the load client hung: it was killed after the longest time that a level takes"
        status = self.popen.wait()
        self.stderr.seek(0)
        said = self.stderr.read().decode(errors="replace").strip()
        return f"the load client ended with status {status}" + (f": {said}" if said else "")

    def end(self) -> None:
        """Kill the process and reap it."""
        self.popen.kill()
        self.popen.wait()
        self.connection.close()
        self.stderr.close()


class LoadClient:
    """Sends load levels from processes of its own: one, and more where one cannot keep up.

    Processes are started again when they are found dead. They end with the thread that started them
    (a property of PR_SET_PDEATHSIG), so start them from one that lives as long.
    """

    def __init__(self, cores: Sequence[int] | None = None) -> None:
        """Keep the processes to these CPU cores; None leaves them where the parent may run."""
        self._cores = cores
        self._wanted = 1
        self._most = len(cores) if cores is not None else len(usable_cores())
        self._processes: list[_ClientProcess] = []

    def __enter__(self) -> LoadClient:
        """Start the first process."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes."""
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
            process.end()
        self._processes = []

    def run_level(self, plan: LevelPlan, target: Target, rng: np.random.Generator) -> LoadLevel:
        """Send one level and measure it.

        Takes at most warm-up, measured time and timeout, and a fixed margin. Failed requests are
        counted in the level, unless the server refuses them all for a second: it is gone. Where the
        client lags by more than the plan allows, the level is run again, with twice the processes
        if it was busy, up to one for each core. A level that still has too much lag says so in
        `client.kept_up`.

        Raises:
            LoadTestFailure: when the server is gone, a client process died or hung (it is started
                anew next time), or a stream had no request to measure.
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
        """The level, and whether a process had so much to do that more of them would help."""
        self.start()
        bound = plan.sending_seconds + plan.timeout_seconds + _MARGIN_SECONDS
        with self._watched(bound):
            order = order_for(plan, target, rng)
            for process, share in zip(
                self._processes, shares(order, len(self._processes)), strict=True
            ):
                process.tell(share)
            ready = [process.hear() for process in self._processes]
            begin = Begin(time.perf_counter() + _LEAD_SECONDS)
            for process in self._processes:
                process.tell(begin)
            underway = _UnderWay(plan, order, self._processes)
            underway.follow()
        client = _client_use(plan, underway, all(r.realtime for r in ready if isinstance(r, Ready)))
        streams, busy = target.plain_streams, underway.busiest > _BUSY
        return load_level(plan, streams, underway.replies(), client, underway.stopped), busy

    @contextmanager
    def _watched(self, bound_seconds: float) -> Iterator[None]:
        """Processes that take longer are killed; an exchange that fails leaves none of them."""
        # A thread, because sending a large order to a hung process would block as well.
        watchdog = Timer(bound_seconds, self._give_up)
        watchdog.start()
        try:
            yield
        except BaseException:
            # An interrupted exchange leaves stale reports behind: begin afresh.
            self.close()
            raise
        finally:
            watchdog.cancel()

    def _give_up(self) -> None:
        for process in self._processes:
            process.give_up()


class _UnderWay:
    """A level that client processes are sending, as their reports tell it."""

    def __init__(self, plan: LevelPlan, order: Order, processes: Sequence[_ClientProcess]) -> None:
        self._plan = plan
        self._order = order
        self._by_connection = {process.connection: process for process in processes}
        self._reports: list[Report] = []
        self.last: list[Report] = []
        self.stopped: tuple[EndReason, float] | None = None

    def follow(self) -> None:
        """Take in reports until every process has sent its last; stop early where the plan says."""
        running = dict(self._by_connection)
        reported: dict[Connection, float] = {}
        while running:
            for connection in wait(list(running)):
                assert isinstance(connection, Connection)
                report = running[connection].hear()
                assert isinstance(report, Report)
                self._reports.append(report)
                reported[connection] = report.now_seconds
                if report.last:
                    self.last.append(report)
                    del running[connection]
            if len(reported) == len(self._by_connection) and running:
                self._look(min(reported.values()))
                reported = {} if len(running) == len(self._by_connection) else reported

    def _look(self, now: float) -> None:
        if self._plan.stop is None or self.stopped is not None:
            return
        open_loop = isinstance(self._order.pace, Schedule)
        due = (
            self._order.pace.due_seconds if isinstance(self._order.pace, Schedule) else np.empty(0)
        )
        streams = self._order.streams if open_loop else np.empty(0, dtype=np.int64)
        ended = self._plan.stop(LevelProgress(now, self.replies(), due, streams))
        if ended is not None:
            self.stopped = ended, now
            for process in self._by_connection.values():
                process.tell(Stop())

    @property
    def busiest(self) -> float:
        """Largest share of a core that a process used."""
        return max(report.cpu_seconds / report.now_seconds for report in self.last)

    def replies(self) -> Replies:
        """Everything that was reported so far, in the order of due times."""
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


def _client_use(plan: LevelPlan, underway: _UnderWay, realtime: bool) -> ClientUse:
    replies = underway.replies()
    end = underway.stopped[1] if underway.stopped is not None else float("inf")
    inside = (replies.due_seconds >= plan.warmup_seconds) & (replies.due_seconds < end)
    lag = (replies.sent_seconds - replies.due_seconds)[inside] * 1e3
    return ClientUse(
        processes=len(underway.last),
        cpu_seconds=sum(report.cpu_seconds for report in underway.last),
        memory_mib=sum(report.memory_bytes for report in underway.last) / _MIB,
        lag_ms=float(np.percentile(lag, 99)) if len(lag) else 0.0,
        longest_lag_ms=plan.longest_lag_ms,
        realtime=realtime,
    )

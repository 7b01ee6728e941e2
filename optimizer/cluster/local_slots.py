"""The pool of the slots of this machine: a worker process for each.

    with LocalSlots(open_worker, slots, watch) as pool:
        pool.submit(Task(number=0, attempt=1, config=config))
        end = pool.next_end()

Each worker has its own server, ports, cores, load client and log. A worker whose process ends is
lost, and is started again with its next task.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import Pipe
from queue import Empty, SimpleQueue
from threading import Event as ThreadEvent
from threading import Thread
from typing import Self

from optimizer.cluster.worker_messages import Go, Opening, OpenWorker, WorkerOrder
from optimizer.errors import OptimizerError
from optimizer.files.shipped import import_folder
from optimizer.machine import child_shim
from optimizer.machine.leftovers import MARK, end_leftovers
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState
from optimizer.study.events import (
    Event,
    LevelStarted,
    Watcher,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)

_STOP_SECONDS = 30.0
"""A worker stops its server in less."""

_Message = Event | Evaluation | OptimizerError | None
"""What a worker sends; None once its connection is closed."""

_Inbox = SimpleQueue[tuple["_WorkerProcess", _Message]]


class _WorkerProcess:
    """A running process of a worker; its messages are put into the inbox by a thread.

    A worker must never wait for this process, which proposes and records meanwhile.
    """

    def __init__(
        self, open_worker: OpenWorker, slot: Slot, predecessor: str | None, inbox: _Inbox
    ) -> None:
        self._connection, theirs = Pipe()
        # In memory: a full disk must not stop the worker. Closed in `close`.
        self._stderr = os.fdopen(os.memfd_create("worker"), "w+b")
        self.mark = f"{os.getpid()}-{slot.name}-{time.monotonic_ns()}"
        with theirs:
            self._popen = subprocess.Popen(
                _command(slot, theirs.fileno()),
                cwd=import_folder(),
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env={**os.environ, MARK: self.mark},
                # Ctrl-C and the terminal's hang-up are this process's to handle.
                start_new_session=True,
            )
        self._opened = ThreadEvent()
        opening = Opening(open_worker, slot, predecessor)
        self._thread = Thread(
            target=self._exchange, args=(opening, inbox), name=slot.name, daemon=True
        )
        self._thread.start()

    def send(self, message: object) -> None:
        """Send a message; one to a process that has ended is lost, and the inbox tells so."""
        self._opened.wait()
        with suppress(OSError):
            self._connection.send(message)

    def _exchange(self, opening: Opening, inbox: _Inbox) -> None:
        """Send what opens the worker, which is read seconds later; then receive until the end."""
        try:
            with suppress(OSError):
                self._connection.send(sys.path)
                self._connection.send(opening)
            self._opened.set()
            with suppress(EOFError, OSError):
                while True:
                    inbox.put((self, self._connection.recv()))
        finally:
            self._opened.set()
            inbox.put((self, None))

    def terminate(self) -> None:
        """Have the process stop its server and end."""
        self._popen.terminate()

    def close(self, seconds: float) -> str:
        """Wait for the process to end, and return how it did; kill it after some seconds."""
        try:
            code = self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            code = self._popen.wait()
            end_leftovers(self.mark)
        self._thread.join()  # its connection has ended with the process
        self._connection.close()
        with self._stderr as file:
            file.seek(0)
            errors = file.read().decode(errors="replace").strip()
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        last = f": {errors.splitlines()[-1]}" if errors else ""
        return f"its process ended with {how}{last}"


def _command(slot: Slot, descriptor: int) -> list[str]:
    """Return the command of a worker that keeps to the cores of its slot, and ends with us."""
    cores = ",".join(map(str, slot.all_cores))
    return [
        *(sys.executable, "-I", "-S", str(child_shim.__file__), str(os.getpid()), cores, "--"),
        *(sys.executable, "-m", "optimizer.cluster.worker_process", str(descriptor)),
    ]


class _Worker:
    """One worker: its slot, its process where one runs, and its task."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.process: _WorkerProcess | None = None
        self.task: Task | None = None
        self.losses = 0
        self.runs_alone = 0
        self.lost_mark: str | None = None

    @property
    def state(self) -> WorkerState:
        return WorkerState(self.slot.name, self.slot.location, self.task, self.losses)

    def lose(self) -> str:
        """Forget a process that has ended; return how it ended."""
        assert self.process is not None, "only a process that was started can be lost"
        self.lost_mark, reason = self.process.mark, self.process.close(_STOP_SECONDS)
        self.process = None
        self.losses += 1
        return reason


class LocalSlots:
    """A `WorkerPool` of worker processes on this machine; a context manager that ends them.

    Use it from the thread that created it: the kernel ends workers with the thread that started
    them.

    Args:
        slots: with unique names.
        watch: receives the workers' events, within `next_end` and `run_together`.
    """

    def __init__(self, open_worker: OpenWorker, slots: Sequence[Slot], watch: Watcher) -> None:
        self._open_worker = open_worker
        self._workers = [_Worker(slot) for slot in slots]
        self._most = len(slots)
        self._alone: _Worker | None = None
        self._watch = watch
        self._inbox: _Inbox = SimpleQueue()

    def __enter__(self) -> Self:
        for worker in self._workers:
            self._start(worker)
        self._watch(WorkersStarted({each.slot.name: each.slot.location for each in self._workers}))
        return self

    def __exit__(self, *_: object) -> None:
        processes = [each.process for each in self._workers if each.process is not None]
        for process in processes:
            process.terminate()
        end = time.monotonic() + _STOP_SECONDS
        for process in processes:
            process.close(max(0.0, end - time.monotonic()))

    @property
    def idle(self) -> int:
        """How many tasks may be submitted now; a lost worker is started again for one."""
        if self._alone is not None:
            return 0
        return max(0, self._most - len(self._running))

    @property
    def workers(self) -> Sequence[WorkerState]:
        """All workers: each is started again where it is lost."""
        return [each.state for each in self._workers]

    def one_at_a_time(self) -> None:
        """Run one task at a time from now on."""
        self._most = 1

    def submit(self, task: Task) -> None:
        """Have an idle worker run a task: of those, the first with the fewest losses.

        One that is to run alone waits for the tasks that run; the workers take turns with these, so
        that each of them shows how fast it is.

        Raises:
            ValueError: without an idle worker.
        """
        if not self.idle:
            raise ValueError(
                f"a task may be submitted to an idle worker only; {len(self._running)} of "
                f"{self._most} run one"
            )
        idle = [each for each in self._workers if each.task is None]
        if task.alone:
            worker = min(idle, key=lambda each: each.runs_alone)
            worker.runs_alone += 1
            worker.task, self._alone = task, worker
            self._start_alone()
        else:
            worker = min(idle, key=lambda each: each.losses)
            self._order(worker, WorkerOrder(task))

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Wait for a task to end, see `WorkerPool.next_end`.

        Raises:
            OptimizerError: that ended a worker, such as a full disk; it would end the others too.
        """
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while self._running:
            try:
                left = None if until is None else max(0.0, until - time.monotonic())
                process, message = self._inbox.get(timeout=left)
            except Empty:
                return None
            end = self._take(process, message)
            if end is not None:
                if self._alone is not None and self._alone.task is None:
                    self._alone = None
                self._start_alone()
                return end
        return None

    def run_together(self, task: Task) -> Sequence[TaskEnd]:
        """Run a task on every worker; their first load levels start at the same time.

        Raises:
            OptimizerError: see `next_end`.
        """
        assert not self._running, "the workers must be idle"
        for worker in self._workers:
            self._order(worker, WorkerOrder(task, waits=True))
        not_ready = {each.process for each in self._workers}
        ends: list[TaskEnd] = []
        while self._running:
            process, message = self._inbox.get()
            end = self._take(process, message)
            if end is not None:
                ends.append(end)
            if process in not_ready and (end is not None or isinstance(message, LevelStarted)):
                not_ready.remove(process)
                if not not_ready:
                    self._send_go()
        return ends

    def _send_go(self) -> None:
        for worker in self._running:
            if worker.process is not None:
                worker.process.send(Go())

    @property
    def _running(self) -> Sequence[_Worker]:
        return [each for each in self._workers if each.task is not None]

    def _start_alone(self) -> None:
        """Start the run that is to be alone once nothing else runs."""
        if self._alone is not None and len(self._running) == 1:
            assert self._alone.task is not None, "it is kept until it ends"
            self._order(self._alone, WorkerOrder(self._alone.task))

    def _order(self, worker: _Worker, order: WorkerOrder) -> None:
        if worker.process is None:
            self._start(worker)
        assert worker.process is not None, "it was just started"
        worker.task = order.task
        worker.process.send(order)

    def _start(self, worker: _Worker) -> None:
        worker.process = _WorkerProcess(
            self._open_worker, worker.slot, worker.lost_mark, self._inbox
        )

    def _take(self, process: _WorkerProcess, message: _Message) -> TaskEnd | None:
        """Handle a message; return the end of a task where it is one."""
        worker = next(each for each in self._workers if each.process is process)
        name, task = worker.slot.name, worker.task
        if isinstance(message, OptimizerError):
            raise message
        if message is None:
            worker.task, reason = None, worker.lose()
            self._watch(WorkerLost(name, task.number if task is not None else None, reason))
            return TaskEnd(task, name, None, reason) if task is not None else None
        assert task is not None, "an idle worker sends nothing"
        if isinstance(message, Evaluation):
            worker.task = None
            return TaskEnd(task, name, message)
        self._watch(WorkerEvent(name, task.number, message))
        return None

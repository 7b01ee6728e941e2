"""A worker in a process of its own: it evaluates tasks on one slot, one after the other.

    python -m optimizer.cluster.worker_process FD PARENT_PID

Started by `optimizer.cluster.local_slots`. It reads an `Opening` from the connection FD and then
tasks, and answers each with its evaluation, after the events on the way there. It ends, and its
server with it, when the connection closes, at SIGTERM, and when its parent ends.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from types import FrameType

import psutil

from optimizer.errors import OptimizerError
from optimizer.machine.child_shim import die_with_parent
from optimizer.machine.slots import Slot
from optimizer.search.evaluator import Evaluator
from optimizer.search.worker_pool import Task
from optimizer.study.events import Event, LevelStarted, Watcher

MARK = "OPTIMIZER_WORKER"
"""Environment variable that a worker's server and load client inherit: its value names the worker's
process, which may be gone before they are."""

_END_SECONDS = 15.0
"""A server that has lost its worker unloads its models and ends; this is more than it takes."""

OpenWorker = Callable[[Slot, Watcher], AbstractContextManager[Evaluator]]
"""Opens the evaluator of one worker. It can be pickled."""


@dataclass(frozen=True)
class Opening:
    """What a worker is opened with.

    Attributes:
        predecessor: mark of the lost worker whose slot this is; what is left of it ends first.
    """

    open_worker: OpenWorker
    slot: Slot
    predecessor: str | None


@dataclass(frozen=True)
class Order:
    """A task of a worker.

    Attributes:
        waits: whether its first load level waits for a `Go`, so that it starts with others.
    """

    task: Task
    waits: bool = False


@dataclass(frozen=True)
class Go:
    """All levels that were to start together are ready."""


class _Teller:
    """The watcher of a worker, which tells its parent all events."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.waits = False

    def __call__(self, event: Event) -> None:
        self._connection.send(event)
        if self.waits and isinstance(event, LevelStarted):
            self.waits = False
            assert isinstance(self._connection.recv(), Go)


def serve(connection: Connection) -> None:
    """Evaluate tasks until the other end is closed; send the error that ends it before."""
    opening: Opening = connection.recv()
    if opening.predecessor is not None:
        end_leftovers(opening.predecessor)
    tell = _Teller(connection)
    try:
        with opening.open_worker(opening.slot, tell) as evaluator:
            while True:
                order: Order = connection.recv()
                tell.waits = order.waits
                connection.send(order.task.run(evaluator, opening.slot))
    except OptimizerError as error:
        connection.send(error)


def end_leftovers(mark: str) -> None:
    """Wait for the processes of a lost worker to end, and kill those that do not."""
    _, alive = psutil.wait_procs(_marked(mark), _END_SECONDS)
    for process in alive:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(alive, _END_SECONDS)


def _marked(mark: str) -> list[psutil.Process]:
    marked = []
    for process in psutil.process_iter():
        # The environment of other users' processes, and of zombies, cannot be read.
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                marked.append(process)
    return marked


def _end(_: int, __: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent may end while the server is stopped
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """Bind the process to its parent, then serve."""
    descriptor, parent_pid = map(int, arguments)
    die_with_parent(parent_pid, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _end)
    connection: Connection = Connection(descriptor)
    with suppress(EOFError, ConnectionError):
        sys.path[:] = connection.recv()
        serve(connection)


if __name__ == "__main__":
    main(sys.argv[1:])

"""A worker in a process of its own: it evaluates tasks on one slot, one after the other.

    python -m optimizer.cluster.worker_process FD

Started by `optimizer.cluster.local_slots`. It reads an `Opening` from the connection FD and then
tasks, and answers each with its evaluation, after the events on the way there. It ends, and its
server with it, when the connection closes and at SIGTERM, which the kernel sends when its parent
ends.
"""

from __future__ import annotations

import signal
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from types import FrameType

from optimizer.cluster.worker_messages import Go, Opening, WorkerOrder
from optimizer.errors import OptimizerError
from optimizer.machine.leftovers import end_leftovers
from optimizer.study.events import Event, LevelStarted


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
                order: WorkerOrder = connection.recv()
                tell.waits = order.waits
                connection.send(order.task.run(evaluator, opening.slot))
    except OptimizerError as error:
        connection.send(error)


def _end(_: int, __: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the parent may end while the server is stopped
    raise SystemExit(0)


def main(arguments: list[str]) -> None:
    """Serve until SIGTERM, or the other end is closed."""
    signal.signal(signal.SIGTERM, _end)
    connection: Connection = Connection(int(arguments[0]))
    with suppress(EOFError, ConnectionError):
        sys.path[:] = connection.recv()
        serve(connection)


if __name__ == "__main__":
    main(sys.argv[1:])

"""The child process of `BuildProcess`.

    python -m optimizer.artifacts.build_process_child FD

Takes the artefact cache and then jobs from the connection FD, and replies to each job. It ends,
even in the middle of a build, when the connection closes, as the kernel does for a parent that is
killed, and when its parent has changed, since another process may have inherited the parent's end.
A parent-death signal does not serve: it is sent when the thread that started the child ends.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

from optimizer.artifacts.build_messages import Job, JobProgress, Reply, answer
from optimizer.artifacts.cache import ArtifactCache

_ORPHAN_CHECK_S = 1.0


def main() -> None:
    """Reply to jobs until the parent is gone."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("optimizer").setLevel(logging.INFO)
    connection: Connection[Reply | JobProgress, Any] = Connection(int(sys.argv[1]))
    cache: ArtifactCache = connection.recv()
    jobs: SimpleQueue[Job[object]] = SimpleQueue()
    # Progress may be reported on another thread.
    send_lock = threading.Lock()

    def send(message: Reply | JobProgress) -> None:
        with send_lock:
            connection.send(message)

    threading.Thread(target=_receive, args=(connection, jobs), daemon=True).start()
    while True:
        send(answer(jobs.get(), cache, lambda text: send(JobProgress(text))))


def _receive(
    connection: Connection[Reply | JobProgress, Any], jobs: SimpleQueue[Job[object]]
) -> None:
    parent = os.getppid()
    try:
        while os.getppid() == parent:
            if connection.poll(_ORPHAN_CHECK_S):
                jobs.put(connection.recv())
    except (EOFError, OSError):
        pass
    finally:
        # Not sys.exit: the main thread may be in a build, and the cache survives any kill.
        os._exit(0)


if __name__ == "__main__":
    main()

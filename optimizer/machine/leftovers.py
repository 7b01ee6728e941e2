"""The processes that a killed process has left, by a mark that they inherited from it."""

from __future__ import annotations

from contextlib import suppress

import psutil

MARK = "OPTIMIZER_WORKER"
"""Environment variable of a worker's process, which its server and load client inherit."""

_END_SECONDS = 15.0
"""A server whose parent is gone unloads its models and ends; this is more than it takes."""


def end_leftovers(mark: str) -> None:
    """Wait for the processes with a mark to end, and kill those that do not."""
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

"""The logs of workers on other hosts, whose ends are copied to the study's folder."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from optimizer.machine.leftovers import MARK
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, WorkerEvent, WorkerLogsRead

_STDERR = 2
_MOST_BYTES = 2**18
"""Of a log that is copied."""


def own_logs() -> Mapping[str, bytes]:
    """Return the ends of the logs of this process, where it is a worker with a folder."""
    own = os.environ.get(MARK)
    return ends_of_logs(Path(own)) if own else {}


def keep_logs(directory: StudyDirectory, event: Event) -> None:
    """Write the logs of a worker to the study's folder; a run does not end because of logs."""
    if isinstance(event, WorkerEvent):
        event = event.event
    if isinstance(event, WorkerLogsRead):
        own = directory.of_worker(event.worker)
        for path in (own.server_log, own.worker_log):
            content = event.logs.get(path.name.partition(".")[0] + path.suffix)
            if content is not None:
                with suppress(OSError):
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)


@contextmanager
def own_log(path: Path) -> Iterator[None]:
    """Send what this process writes to its standard error to a file within the block.

    Ray's own files are named after processes, and tell nobody which worker was which.
    """
    before = os.dup(_STDERR)
    with suppress(OSError):  # a worker does its work without a log too
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            os.dup2(log.fileno(), _STDERR)
    try:
        yield
    finally:
        os.dup2(before, _STDERR)
        os.close(before)


def ends_of_logs(folder: Path) -> Mapping[str, bytes]:
    """Return the ends of the logs in the folder of a worker, by name of the file."""
    ends = {}
    for path in folder.glob("*/logs/*.log"):
        with suppress(OSError), path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _MOST_BYTES))
            ends[path.name] = log.read(_MOST_BYTES)
    return ends

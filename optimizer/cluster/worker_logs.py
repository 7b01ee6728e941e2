"""The logs of workers on other hosts, whose ends are copied to the study's folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from optimizer.machine.leftovers import MARK
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, WorkerEvent, WorkerLogsRead

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


def link_own_log(link: Path) -> None:
    """Have a later worker find what this process writes, which Ray keeps by process."""
    with suppress(OSError):  # a worker does its work without logs too
        target = Path("/proc/self/fd/2").readlink()
        if target.is_file():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(target)


def ends_of_logs(folder: Path) -> Mapping[str, bytes]:
    """Return the ends of the logs in the folder of a worker, by name of the file."""
    ends = {}
    for path in folder.glob("*/logs/*.log"):
        with suppress(OSError), path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _MOST_BYTES))
            ends[path.name] = log.read(_MOST_BYTES)
    return ends

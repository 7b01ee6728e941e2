"""What a server and its models' own processes use, by the kernel's own accounts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, TypeVar

import psutil

_MODEL_PROCESS = "triton_python_b"
"""Begins the name of what Triton runs Python models in; the kernel keeps 15 characters."""

_Number = TypeVar("_Number", int, float)


def resident_bytes(pid: int) -> int | None:
    """Resident memory of one process; None where it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def memory_bytes(pid: int) -> int | None:
    """Memory of a process and all below it; what they share is divided among them.

    None where it is gone, or another user's.
    """
    return _sum(pid, lambda process: int(process.memory_full_info().pss))


def cpu_seconds(pid: int) -> float | None:
    """Process-CPU time spent so far by a process and all below it; None where it is gone."""
    return _sum(pid, _cpu_seconds)


def model_statuses(pid: int) -> dict[int, str] | None:
    """Return psutil's status of the processes of Python models below a server, by process id.

    None where the server is gone.
    """
    try:
        below = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return None
    found: dict[int, str] = {}
    for process in below:
        with suppress(psutil.Error):
            if process.name().startswith(_MODEL_PROCESS):
                found[process.pid] = process.status()
    return found


def listening_below(pid: int) -> set[int]:
    """TCP ports that a process or one below it listens on; none where it is gone.

    Raises:
        psutil.AccessDenied: it is another user's.
    """
    ports = set()
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            ports |= _listening(process.net_connections("tcp"))
    return ports


def listening_anywhere() -> set[int]:
    """TCP ports that somebody on this machine listens on."""
    return _listening(psutil.net_connections("tcp"))


def _listening(connections: Iterable[Any]) -> set[int]:
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def _sum(pid: int, of: Callable[[psutil.Process], _Number]) -> _Number | None:
    """Of a process and all below it, less those that end meanwhile."""
    total = None
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        total = of(first)
        for below in first.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += of(below)
    return total


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    # Those of children that have ended count on: a model's process goes when it is unloaded.
    ended = times.children_user + times.children_system
    return float(times.user + times.system + ended)

"""Memory, CPU time and ports of a server and its model processes, from the kernel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

import psutil

_MODEL_PROCESS = "triton_python_b"
"""Name of the processes of Python models, of which the kernel keeps 15 characters."""

_Number = TypeVar("_Number", int, float)


def resident_bytes(pid: int) -> int | None:
    """Return the resident memory of one process; None where it is gone."""
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def memory_bytes(pid: int) -> int | None:
    """Return the memory of a process and its descendants; shared memory is divided among them.

    None where the process is gone, or belongs to another user.
    """
    each = _each(pid, lambda process: int(process.memory_full_info().pss))
    return sum(each.values()) if each is not None else None


def cpu_seconds(pid: int) -> Mapping[int, float] | None:
    """Return the CPU time so far of a process and of each descendant, by process id.

    None where the process is gone.
    """
    return _each(pid, _cpu_seconds)


def model_statuses(pid: int) -> dict[int, str] | None:
    """Return psutil's status of a server's Python model processes by id; None where it is gone."""
    try:
        descendants = psutil.Process(pid).children(recursive=True)
    except psutil.Error:
        return None
    statuses: dict[int, str] = {}
    for process in descendants:
        with suppress(psutil.Error):
            if process.name().startswith(_MODEL_PROCESS):
                statuses[process.pid] = process.status()
    return statuses


def listening_below(pid: int) -> set[int]:
    """Return the TCP ports that a process or a descendant listens on; none where it is gone.

    Raises:
        psutil.AccessDenied: it belongs to another user.
    """
    ports = set()
    with suppress(psutil.NoSuchProcess):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            ports |= _listening(process.net_connections("tcp"))
    return ports


def listening_anywhere() -> set[int]:
    """Return the TCP ports that any process of this machine listens on."""
    return _listening(psutil.net_connections("tcp"))


def _listening(connections: Iterable[Any]) -> set[int]:
    return {each.laddr.port for each in connections if each.status == psutil.CONN_LISTEN}


def _each(pid: int, of: Callable[[psutil.Process], _Number]) -> dict[int, _Number] | None:
    """Return a figure of a process and of each descendant, without those that end meanwhile."""
    figures = None
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        figures = {pid: of(first)}
        for process in first.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                figures[process.pid] = of(process)
    return figures


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)

"""Cores and memory that this process may use, within affinity and control groups.

A container's CPU quota does not show in its affinity: it may have half a core of 64, and threads
for the other cores would only wait for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from optimizer.machine.cgroups import cpu_quota, free_memory_bytes, memory_limit_bytes


def usable_cores() -> tuple[int, ...]:
    """Return the ids of the cores to use: as many as the quota allows, and at least one."""
    allowed = tuple(sorted(os.sched_getaffinity(0)))
    quota = binding_quota()
    return allowed if quota is None else allowed[: max(1, math.floor(quota))]


@contextmanager
def keep_to(cores: Collection[int]) -> Iterator[None]:
    """Keep the threads of this process to some cores within the block; without any, leave them."""
    before = os.sched_getaffinity(0)
    _keep_threads_to(cores or before)
    try:
        yield
    finally:
        _keep_threads_to(before)


def _keep_threads_to(cores: Collection[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def binding_quota() -> float | None:
    """Return the CPU quota in cores, such as 0.5; None where the affinity allows no more."""
    quota = cpu_quota()
    return quota if quota is not None and quota < len(os.sched_getaffinity(0)) else None


def cores_text(count: int, quota: float | None) -> str:
    """Return whole cores and the quota in words."""
    cores = f"{count} core{'s' if count != 1 else ''}"
    return cores if quota is None else f"{cores} (the CPU quota is {quota:g} cores)"


def total_memory_bytes() -> int:
    """Return the memory of this machine within the limit of the control groups."""
    whole = int(psutil.virtual_memory().total)
    return min(whole, memory_limit_bytes() or whole)


def unused_memory_bytes() -> int:
    """Return the available memory within the limit of the control groups."""
    available, within_limit = int(psutil.virtual_memory().available), free_memory_bytes()
    return available if within_limit is None else max(0, min(available, within_limit))

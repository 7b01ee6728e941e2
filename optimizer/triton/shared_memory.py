"""Shared memory of servers and of the load client: its names, and how it is given back.

/dev/shm belongs to every process of the machine, so a name tells whose it is, and nothing is
removed that another user, or a process in another container, may be using.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from optimizer.errors import storage_errors

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux shows it; only our own are removed

_PREFIX = "tco"


def region_prefix(count: int) -> str:
    """Return how the names of one server's regions begin.

    Args:
        count: of the servers that this process has started, this one included; 0 for a region
            of the load client.
    """
    return f"{_PREFIX}_{_namespace()}_{os.getpid()}_{count}_"


def reserve(name: str, size_bytes: int, folder: Path = SHARED_MEMORY) -> None:
    """Take the memory of a region, which ends a process that touches what is not there.

    Raises:
        StorageError: where there is not enough of it.
    """
    path = folder / name
    with storage_errors(path), path.open("r+b") as region:
        os.posix_fallocate(region.fileno(), 0, size_bytes)


def remove_regions(prefix: str, folder: Path = SHARED_MEMORY) -> None:
    """Give back the memory of one server that has ended."""
    for region in folder.glob(f"{prefix}*"):
        _remove(region)


def remove_regions_of_the_dead(folder: Path = SHARED_MEMORY) -> None:
    """Give back the memory of servers whose optimizer was killed."""
    for region, owner in _ours(folder):
        if not psutil.pid_exists(owner):
            _remove(region)


def _ours(folder: Path) -> Iterator[tuple[Path, int]]:
    """Regions of this program, each with the process that started its server.

    A process id means something within its own namespace alone: two containers may share /dev/shm.
    """
    for region in folder.glob(f"{_PREFIX}_{_namespace()}_*"):
        owner = region.name.split("_")[2]
        if owner.isdecimal():
            yield region, int(owner)


def _namespace() -> int:
    """The namespace that process ids belong to."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _remove(region: Path) -> None:
    """Remove a region, unless it is another user's or gone by now."""
    with suppress(OSError):
        if region.stat().st_uid == os.geteuid():
            region.unlink()

"""Names of the shared-memory regions of servers and load client, and their removal.

A region's name holds its owner, since all processes of the machine share /dev/shm. Regions of other
users and of processes in other containers are never removed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from optimizer.errors import storage_errors
from optimizer.files.owned_names import is_alive, pid_namespace

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - of Linux; only our own regions are removed

_PREFIX = "tco"


def region_prefix(count: int) -> str:
    """Return the prefix of the names of one server's regions.

    Args:
        count: number of servers that this process has started, this one included; 0 for the load
            client.
    """
    return f"{_PREFIX}_{pid_namespace()}_{os.getpid()}_{count}_"


def reserve(name: str, size_bytes: int, folder: Path = SHARED_MEMORY) -> None:
    """Allocate the memory of a region: without it, writing to a full /dev/shm kills the process.

    Raises:
        StorageError: when there is not enough memory.
    """
    path = folder / name
    with storage_errors(path), path.open("r+b") as region:
        os.posix_fallocate(region.fileno(), 0, size_bytes)


def remove_regions(prefix: str, folder: Path = SHARED_MEMORY) -> None:
    """Remove the regions of one server that has ended."""
    for region in folder.glob(f"{prefix}*"):
        _remove(region)


def remove_regions_of_the_dead(folder: Path = SHARED_MEMORY) -> None:
    """Remove the regions of servers whose optimizer was killed."""
    for region, owner in _ours(folder):
        if not is_alive(owner):
            _remove(region)


def _ours(folder: Path) -> Iterator[tuple[Path, int]]:
    """Yield the regions of this program, each with the process that started its server.

    Process ids hold within one namespace only: two containers may share /dev/shm.
    """
    for region in folder.glob(f"{_PREFIX}_{pid_namespace()}_*"):
        owner = region.name.split("_")[2]
        if owner.isdecimal():
            yield region, int(owner)


def _remove(region: Path) -> None:
    """Remove a region, unless it belongs to another user or is gone."""
    with suppress(OSError):
        if region.stat().st_uid == os.geteuid():
            region.unlink()

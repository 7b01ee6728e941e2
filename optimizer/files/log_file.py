"""Log files that stay bounded: a large one is moved aside when it is opened."""

from __future__ import annotations

from pathlib import Path
from typing import IO

LARGEST_BYTES = 10 * 2**20
"""A log and the one before it are at most so large each, and what a process writes further."""


def open_log(path: Path) -> IO[bytes]:
    """Open a log to append to it; a large one becomes NAME.1, in the place of the one before.

    Raises:
        OSError: when it cannot be opened.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > LARGEST_BYTES:
        path.replace(path.with_name(f"{path.name}.1"))
    return path.open("ab")

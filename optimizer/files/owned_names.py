"""Names of temporary files and folders that say which process made them.

A process that is killed cannot remove what it was writing. The next one does, and must not touch
what belongs to a process that lives. A name is therefore PREFIX-HOST-NAMESPACE-PID-RANDOM: process
ids hold within one PID namespace of one host, and a disk may be shared by several.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from optimizer.errors import storage_errors

FOLDER_PREFIX = "triton-cost-optimizer"
"""Of temporary folders."""


def owned_name(prefix: str) -> str:
    """Return a new name that tells that this process is its owner."""
    return f"{prefix}-{_location()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def remove_abandoned(folder: Path, prefix: str = FOLDER_PREFIX) -> None:
    """Remove the files and folders in `folder` whose owner is a dead process of this machine.

    Args:
        prefix: of their names; may be a pattern such as ".*.new".
    """
    for path in folder.glob(f"{prefix}-{_location()}-*-*"):
        pid = path.name.rsplit("-", 2)[1]
        if pid.isdecimal() and not is_alive(int(pid)):
            _remove(path)


@contextmanager
def temporary_folder(parent: Path | None = None, prefix: str = FOLDER_PREFIX) -> Iterator[Path]:
    """Yield a new folder, which is removed in the end, or by the next process after a kill.

    Args:
        parent: where it lies; None for the folder of temporary files (TMPDIR).

    Raises:
        StorageError: when it cannot be made.
    """
    parent = parent or Path(tempfile.gettempdir())
    remove_abandoned(parent, prefix)
    folder = parent / owned_name(prefix)
    with storage_errors(folder):
        folder.mkdir(parents=True, mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Return whether a process of this PID namespace is alive, whoever's it is."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


@cache
def pid_namespace() -> int:
    """Return the id of this process's PID namespace."""
    return Path("/proc/self/ns/pid").stat().st_ino


def _location() -> str:
    return f"{socket.gethostname()}-{pid_namespace()}"


def _remove(path: Path) -> None:
    """Remove a file or a folder, unless it belongs to another user or is gone."""
    with suppress(OSError):
        if path.lstat().st_uid != os.geteuid():
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()

"""The folder of a worker on its node, and the end of workers that a lost node has left.

A worker holds the lock of its folder. One that still holds it although the Ray process that started
it is gone is an orphan: it is ended with its server and its load client.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

from optimizer.errors import StorageError, storage_errors
from optimizer.machine.leftovers import MARK, end_leftovers
from optimizer.study.directory import StudyDirectory

_RAY_NODE_PROCESS = "raylet"
_END_SECONDS = 10.0


def workers_root() -> Path:
    """Return the folder of this user's workers on this machine."""
    return Path(tempfile.gettempdir()) / f"triton-cost-optimizer-{os.getuid()}" / "workers"


@contextmanager
def worker_folder(root: Path, study: str) -> Iterator[StudyDirectory]:
    """Yield a locked directory of this process, which is removed in the end.

    Args:
        root: see `workers_root`; what lost workers have left there is ended and removed first.
        study: name of the study, which messages about the directory give.

    Raises:
        StorageError: the folder cannot be made.
    """
    own = root / str(os.getpid())
    directory = StudyDirectory(own / study)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        with storage_errors(root):
            for folder in (root.parent, root):
                _make_private(folder)
            with (root / "lock").open("w") as lock:
                # A worker that starts meanwhile is not locked yet, and would look like a lost one.
                fcntl.flock(lock, fcntl.LOCK_EX)
                end_orphans(root)
                stack.enter_context(directory.locked())
        os.environ[MARK] = str(own)
        yield directory


def _make_private(folder: Path) -> None:
    """Make a folder for this user alone: processes are ended by what lies in it.

    Raises:
        StorageError: where another user has made it, or may write to it.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise StorageError(
            f"{folder} must be a folder that only you can write to; got user {status.st_uid}, "
            f"mode {stat.S_IMODE(status.st_mode):o}: remove it, or set TMPDIR"
        )


def end_orphans(root: Path) -> None:
    """End the workers in a folder whose Ray node is gone, and remove what lost ones have left."""
    for lock in root.glob("*/*/lock"):
        directory, folder = StudyDirectory(lock.parent), lock.parents[1]
        if directory.running and not _end_orphan(int(lock.read_text())):
            continue
        end_leftovers(str(folder))
        shutil.rmtree(folder, ignore_errors=True)


def _end_orphan(pid: int) -> bool:
    """End a process unless a Ray node runs it; return whether it has ended."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        parent = process.parent()
        if parent is not None and parent.name() == _RAY_NODE_PROCESS:
            return False
        process.kill()
        process.wait(_END_SECONDS)
    return True

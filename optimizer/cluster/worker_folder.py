"""The folder of a worker on its node, and the end of workers that a lost node has left.

A worker holds the lease of its folder. One that still holds it although the Ray process that
started it is gone is an orphan: it is ended with its server and its load client.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import quote, unquote

import psutil

from optimizer.cluster.worker_logs import ends_of_logs, own_log
from optimizer.errors import StorageError, storage_errors
from optimizer.machine.leftovers import MARK, end_leftovers
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Watcher, WorkerLogsRead
from optimizer.study.lease import Holder

_RAY_NODE_PROCESS = "raylet"
_END_SECONDS = 10.0
_NAME = "."
"""Before the worker's name in that of its folder."""


def workers_root() -> Path:
    """Return the folder of this user's workers on this machine."""
    return Path(tempfile.gettempdir()) / f"triton-cost-optimizer-{os.getuid()}" / "workers"


@contextmanager
def worker_folder(
    root: Path, study: str, worker: str, watch: Watcher = lambda _: None
) -> Iterator[StudyDirectory]:
    """Yield a locked directory of this process, which is removed in the end.

    Args:
        root: see `workers_root`; what lost workers have left there is ended and removed first.
        study: name of the study, which messages about the directory give.
        worker: name of the worker, by which a later one tells whose logs it has found.
        watch: receives the logs that lost workers of the study have left.

    Raises:
        StorageError: the folder cannot be made.
    """
    # Two containers may have processes of one id.
    own = root / f"{uuid.uuid4().hex}{_NAME}{quote(worker, safe='')}"
    directory = StudyDirectory(own / study)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        with storage_errors(root):
            for folder in (root.parent, root):
                _make_private(folder)
            with (root / "lock").open("w") as lock:
                # A worker that starts meanwhile is not locked yet, and would look like a lost one.
                fcntl.flock(lock, fcntl.LOCK_EX)
                end_orphans(root, study, watch)
                stack.enter_context(directory.locked())
        stack.enter_context(own_log(directory.worker_log))
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


def end_orphans(root: Path, study: str = "", watch: Watcher = lambda _: None) -> None:
    """End the workers in a folder whose Ray node is gone, and remove what lost ones have left.

    Args:
        study, watch: see `worker_folder`.
    """
    for path in root.glob("*/*/"):
        holder, folder = StudyDirectory(path).holder, path.parent
        if holder is not None and not holder.before_reboot and not _end_orphan(holder):
            continue
        end_leftovers(str(folder))
        if path.name == study and (logs := ends_of_logs(folder)):
            watch(WorkerLogsRead(unquote(folder.name.partition(_NAME)[2]), logs))
        shutil.rmtree(folder, ignore_errors=True)


def _end_orphan(holder: Holder) -> bool:
    """End a process unless a Ray node runs it; return whether it has ended.

    A process of another container, whose id means nothing here, is left alone.
    """
    if holder.alive_here is None:
        return False
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(holder.process)
        parent = process.parent()
        if parent is not None and parent.name() == _RAY_NODE_PROCESS:
            return False
        process.kill()
        process.wait(_END_SECONDS)
    return True

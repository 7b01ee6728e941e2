"""The folders in /tmp that Triton's Python backend makes, and their removal after a kill.

The backend makes one for each server, /tmp/python_env_XXXXXX, wherever TMPDIR points, and removes
it when the server ends. Neither name nor content says whose it is. An empty one of this user is
therefore removed only while no process has the backend loaded: then its owner is dead.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

from optimizer.files.owned_names import pid_namespace

BACKEND_TEMPORARY = Path("/tmp")  # noqa: S108 - of the backend; only its own empty folders go

_PATTERN = "python_env_??????"
_LIBRARY = "libtriton_python.so"

_INITIAL_PID_NAMESPACE = 0xEFFFFFFC
"""The namespace in which all processes of a host are visible, by Linux's proc_ns.h."""


def remove_backend_folders(root: Path = BACKEND_TEMPORARY) -> None:
    """Remove the empty folders of this user that dead servers have left."""
    folders = [path for path in root.glob(_PATTERN) if _is_ours(path)]
    # Their owners are looked for after the folders: a server that starts meanwhile has none here.
    if not folders or not _shows_every_owner(root) or any(map(_has_backend, psutil.process_iter())):
        return
    for folder in folders:
        with suppress(OSError):  # it is not empty
            folder.rmdir()


def _is_ours(path: Path) -> bool:
    with suppress(OSError):
        return path.lstat().st_uid == os.geteuid()
    return False


def _shows_every_owner(root: Path) -> bool:
    """Return whether no process that is hidden from this one can use the folder."""
    return pid_namespace() == _INITIAL_PID_NAMESPACE or not os.path.ismount(root)


def _has_backend(process: psutil.Process) -> bool:
    """Return whether a process of this user has the backend loaded, or may have."""
    try:
        if process.uids().effective != os.geteuid():
            return False
        return _LIBRARY in Path(f"/proc/{process.pid}/maps").read_text()
    except PermissionError:
        return process.name().startswith(("triton", "python"))
    except (OSError, psutil.Error):  # it has ended
        return False

"""Workers that a lost node has left on a machine, and the folders of those that run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from optimizer.cluster.worker_folder import end_orphans, worker_folder
from optimizer.machine.leftovers import MARK

_WORKER = """
import os, subprocess, sys
from pathlib import Path
from optimizer.cluster.worker_folder import worker_folder
from optimizer.machine import child_shim
with worker_folder(Path(sys.argv[1]), "study"):
    shim = [sys.executable, child_shim.__file__, str(os.getpid()), "0", "--"]
    server = subprocess.Popen([*shim, "/bin/sleep", "600"])
    print(server.pid, flush=True)
    sys.stdin.read()
"""
_NODE = """
import subprocess, sys
from pathlib import Path
Path("/proc/self/comm").write_text("raylet")
subprocess.run([sys.executable, "-c", *sys.argv[1:]])
"""


@contextmanager
def worker(root: Path, *before: str) -> Iterator[tuple[psutil.Process, psutil.Process]]:
    """Yield a worker that runs in a process of its own, and its server."""
    process = subprocess.Popen(
        [sys.executable, "-c", *before, _WORKER, str(root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != MARK},
    )
    assert process.stdout is not None
    server = psutil.Process(int(process.stdout.readline()))
    own = server.parent()
    assert own is not None
    try:
        yield own, server
    finally:
        for each in (server, own):
            if each.is_running():
                each.kill()
        process.communicate()


def test_an_orphan_is_ended_with_its_server_and_its_folder_removed(tmp_path: Path) -> None:
    with worker(tmp_path) as (orphan, server):
        assert len(list(tmp_path.glob("*/study/lock"))) == 1
        end_orphans(tmp_path)
        assert not _runs(orphan)
        assert not _runs(server)
        assert list(tmp_path.glob("*/study")) == []


def test_a_worker_of_a_living_node_is_left_alone(tmp_path: Path) -> None:
    with worker(tmp_path, _NODE) as (own, server):
        end_orphans(tmp_path)
        assert _runs(own)
        assert _runs(server)
        assert len(list(tmp_path.glob("*/study/lock"))) == 1


def test_a_worker_ends_what_one_that_was_killed_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "")
    with worker(tmp_path, _NODE) as (killed, server):
        killed.kill()
        killed.wait()
        with worker_folder(tmp_path, "other") as directory:
            assert not _runs(server)
            assert directory.name == "other"
            assert directory.running
            assert list(tmp_path.glob("*/*/lock")) == [directory.root / "lock"]
    assert list(tmp_path.glob("*/*")) == []


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

"""Workers that a lost node has left on a machine, and the folders of those that run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from optimizer.cluster.worker_folder import end_orphans, worker_folder
from optimizer.cluster.worker_logs import keep_logs
from optimizer.machine.leftovers import MARK
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Event, WorkerEvent, WorkerLogsRead
from tests.unit.studies import failed, four_points, record_of

SPACE = four_points()

_WORKER = """
import os, subprocess, sys
from pathlib import Path
from optimizer.cluster.worker_folder import worker_folder
from optimizer.machine import child_shim
with worker_folder(Path(sys.argv[1]), "study", "node/1"):
    shim = [sys.executable, child_shim.__file__, str(os.getpid()), "0", "--"]
    server = subprocess.Popen([*shim, "/bin/sleep", "600"])
    os.write(2, b"Fatal Python error")
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
        assert len(list(tmp_path.glob("*/study/lease"))) == 1
        end_orphans(tmp_path)
        assert not _runs(orphan)
        assert not _runs(server)
        assert list(tmp_path.glob("*/study")) == []


def test_a_worker_of_a_living_node_is_left_alone(tmp_path: Path) -> None:
    with worker(tmp_path, _NODE) as (own, server):
        end_orphans(tmp_path)
        assert _runs(own)
        assert _runs(server)
        assert len(list(tmp_path.glob("*/study/lease"))) == 1


def test_a_worker_ends_what_one_that_was_killed_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "")
    with worker(tmp_path, _NODE) as (killed, server):
        killed.kill()
        killed.wait()
        with worker_folder(tmp_path, "other", "node") as directory:
            assert not _runs(server)
            assert directory.name == "other"
            assert directory.running
            assert list(tmp_path.glob("*/*/lease")) == [directory.root / "lease"]
    assert list(tmp_path.glob("*/*")) == []


def test_the_logs_of_a_lost_worker_are_found_by_the_next_one_of_its_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MARK, "")
    root, study = tmp_path / "workers", StudyDirectory(tmp_path / "results" / "study")
    with worker(root, _NODE) as (killed, _):
        [logs] = (path / "logs" for path in root.glob("*/study"))
        (logs / "server.log").write_bytes(b"early" + b"-" * 2**18 + b"the end")
        killed.kill()
        killed.wait()
        events: list[Event] = []
        with worker_folder(root, "study", "node/1", events.append):
            [event] = events
    assert isinstance(event, WorkerLogsRead)
    assert event.worker == "node/1"
    keep_logs(study, WorkerEvent("node/1", 3, event))
    kept = study.of_worker("node/1")
    assert kept.server_log.parent == study.server_log.parent
    assert kept.server_log.read_bytes().endswith(b"---the end")
    assert kept.server_log.stat().st_size == 2**18
    assert kept.worker_log.read_text() == "Fatal Python error"
    record = replace(record_of(1, SPACE.config(SPACE.baseline), failed()), workers=("node/1",))
    assert study.server_log_of(record) == kept.server_log


def test_logs_that_cannot_be_written_end_no_run(tmp_path: Path) -> None:
    (tmp_path / "study").write_text("no folder")
    keep_logs(StudyDirectory(tmp_path / "study"), WorkerLogsRead("node", {"server.log": b"x"}))


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE

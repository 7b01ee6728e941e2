"""What Triton's Python backend leaves in /tmp: a dead server's goes, a living one's stays."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from optimizer.triton import backend_folders
from optimizer.triton.backend_folders import remove_backend_folders


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a server; tests of other servers on this machine do not count."""
    monkeypatch.setattr(backend_folders, "_LIBRARY", f"{tmp_path}/libtriton_python.so")
    folder = tmp_path / "python_env_bc5Uqd"
    folder.mkdir()
    return folder


@contextmanager
def living_server(library: Path) -> Iterator[None]:
    """A process that has the backend's library mapped, as every server with the backend has."""
    library.write_bytes(b"x" * 4096)
    code = (
        "import mmap, sys\n"
        "with open(sys.argv[1], 'rb') as file:\n"
        "    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)\n"
        "    print(flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(library)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield
        process.stdin.close()
        process.wait()


def test_a_dead_servers_folder_is_removed_and_a_living_ones_is_not(
    left: Path, tmp_path: Path
) -> None:
    with living_server(tmp_path / "libtriton_python.so"):
        remove_backend_folders(tmp_path)
        assert left.exists()
    remove_backend_folders(tmp_path)
    assert not left.exists()


def test_what_may_be_anybodys_is_left(
    left: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (left / "an environment that was extracted").touch()
    others = [tmp_path / name for name in ("python_env_backups", "python_environ", "python_env")]
    for other in others:
        other.mkdir()
    remove_backend_folders(tmp_path)
    assert left.exists()
    assert all(other.exists() for other in others)
    next(left.iterdir()).unlink()
    with monkeypatch.context() as another_user:
        another_user.setattr(os, "geteuid", lambda: os.getuid() + 1)
        remove_backend_folders(tmp_path)
        assert left.exists()
    # A container that shares /tmp with others does not see their processes.
    monkeypatch.setattr(backend_folders, "pid_namespace", lambda: 4_026_540_000)
    monkeypatch.setattr(os.path, "ismount", lambda _: True)
    remove_backend_folders(tmp_path)
    assert left.exists()
    monkeypatch.setattr(os.path, "ismount", lambda _: False)
    remove_backend_folders(tmp_path)
    assert not left.exists()

"""What a killed process was writing is removed by the next, and what lives is left alone."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.errors import StorageError
from optimizer.files.atomic import remove_unfinished
from optimizer.files.owned_names import (
    owned_name,
    pid_namespace,
    remove_abandoned,
    temporary_folder,
)


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def name_of(pid: int, prefix: str = "work") -> str:
    return owned_name(prefix).replace(f"-{os.getpid()}-", f"-{pid}-")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_what_dead_processes_of_this_machine_left_is_removed(
    tmp_path: Path, dead: int
) -> None:
    (tmp_path / name_of(dead) / "inside").mkdir(parents=True)
    (tmp_path / name_of(dead)).touch()
    kept = {
        owned_name("work"),
        name_of(dead, "another"),
        name_of(dead).replace(socket.gethostname(), "another-host"),
        name_of(dead).replace(str(pid_namespace()), "1"),
        f"work-{socket.gethostname()}-{pid_namespace()}-notes-old",
        "work-of-somebody-else",
    }
    for name in kept:
        (tmp_path / name).mkdir()
    remove_abandoned(tmp_path, "work")
    assert names(tmp_path) == kept


def test_what_belongs_to_another_user_is_left(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name_of(dead)
    folder.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_abandoned(tmp_path, "work")
    assert folder.exists()


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path: Path, dead: int) -> None:
    target = tmp_path / "target"
    (target / "inside").mkdir(parents=True)
    (tmp_path / name_of(dead)).symlink_to(target)
    remove_abandoned(tmp_path, "work")
    assert names(tmp_path) == {"target"}
    assert (target / "inside").exists()


def test_a_folder_is_removed_in_the_end_or_by_the_next_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys\n"
        "from optimizer.files.owned_names import temporary_folder\n"
        "with temporary_folder(pathlib.Path(sys.argv[1])):\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", code, tmp_path], check=False)
    assert killed.returncode == -9
    [left] = names(tmp_path)
    with temporary_folder(tmp_path) as folder:
        assert left not in names(tmp_path)
        assert folder.stat().st_mode & 0o077 == 0
        (folder / "file").touch()
    assert names(tmp_path) == set()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(StorageError, match=f"cannot write {tmp_path}/file"),
        temporary_folder(tmp_path / "file"),
    ):
        pytest.fail("it was made")


def test_files_that_were_being_written_are_removed_at_the_next_start(
    tmp_path: Path, dead: int
) -> None:
    (tmp_path / "trials").mkdir()
    (tmp_path / name_of(dead, ".summary.json.new")).touch()
    (tmp_path / "trials" / name_of(dead, ".00007.json.new")).touch()
    written_now = tmp_path / owned_name(".report.html.new")
    written_now.touch()
    remove_unfinished(tmp_path)
    assert names(tmp_path) == {"trials", written_now.name}
    assert names(tmp_path / "trials") == set()

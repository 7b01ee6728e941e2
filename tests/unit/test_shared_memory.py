"""What is left in /dev/shm: our own is removed, all else is left alone."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from optimizer.errors import StorageError
from optimizer.triton.shared_memory import (
    region_prefix,
    remove_regions,
    remove_regions_of_the_dead,
    reserve,
)

PREFIX = region_prefix(1)


@pytest.fixture(scope="module")
def dead() -> int:
    """The id of a process that has ended."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    return ended.pid


def prefix_of(dead: int) -> str:
    return f"tco_{PREFIX.split('_')[1]}_{dead}_1_abc"


def region(folder: Path, name: str) -> Path:
    path = folder / name
    path.write_bytes(b"x")
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_name_tells_whose_it_is() -> None:
    assert re.fullmatch(rf"tco_\d+_{os.getpid()}_1_", PREFIX)
    assert region_prefix(2) != PREFIX


def test_what_a_server_leaves_is_removed(tmp_path: Path) -> None:
    region(tmp_path, f"{PREFIX}abc")
    other = region(tmp_path, f"{region_prefix(12)}abc")
    remove_regions(PREFIX, tmp_path)
    assert names(tmp_path) == {other.name}


def test_the_memory_of_a_killed_optimizer_is_given_back(tmp_path: Path, dead: int) -> None:
    region(tmp_path, prefix_of(dead))
    own = region(tmp_path, f"{PREFIX}abc")
    remove_regions_of_the_dead(tmp_path)
    assert names(tmp_path) == {own.name}


def test_what_belongs_to_another_is_left_alone(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign = {
        f"tco_1_{dead}_1_another_container",
        f"tco_{dead}_1_an_earlier_version",
        "tco_is_what_somebody_else_calls_it",
        "tco_",
        "another_program",
    }
    for name in foreign:
        region(tmp_path, name)
    remove_regions_of_the_dead(tmp_path)
    assert names(tmp_path) == foreign
    another_user = region(tmp_path, prefix_of(dead))
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    remove_regions_of_the_dead(tmp_path)
    remove_regions(another_user.name, tmp_path)
    assert another_user.exists()


def test_a_region_that_may_not_be_removed_ends_nothing(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In /dev/shm only the owner of a file may remove it."""
    kept = region(tmp_path, prefix_of(dead))

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    remove_regions_of_the_dead(tmp_path)
    remove_regions(kept.name, tmp_path)
    assert kept.exists()


def test_without_shared_memory_nothing_is_removed(tmp_path: Path) -> None:
    remove_regions_of_the_dead(tmp_path / "none")
    remove_regions(PREFIX, tmp_path / "none")


def test_a_region_for_which_there_is_no_room_is_an_error_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To touch it would end the process with SIGBUS."""
    made = region(tmp_path, f"{PREFIX}abc")
    reserve(made.name, 4096, tmp_path)
    assert made.stat().st_size == 4096

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=f"{made.name}: No space left on device"):
        reserve(made.name, 1 << 40, tmp_path)

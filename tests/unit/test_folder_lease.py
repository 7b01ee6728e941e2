"""The lease of a study in its folder: what a crash, a full disk or another host leaves there."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest

from optimizer.errors import StorageError, StudyBusyError, UsageError
from optimizer.study import lease as module
from optimizer.study.directory import StudyDirectory
from optimizer.study.folder_lease import FolderLease
from optimizer.study.lease import Holder

pytestmark = pytest.mark.usefixtures("fast_disk")

_HOLDER = """
import sys
from pathlib import Path
from optimizer.study import lease
from optimizer.study.directory import StudyDirectory
lease.BEAT_SECONDS = 0.2
with StudyDirectory(Path(sys.argv[1])).locked():
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "quick")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_SECONDS", 2.0)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.1)


@contextmanager
def holder(directory: StudyDirectory, *before: str) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that holds the lease."""
    command = [*before, sys.executable, "-c", _HOLDER, str(directory.root)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "\n"
        try:
            yield process
        finally:
            process.kill()


def files(directory: StudyDirectory) -> list[str]:
    return sorted(path.name for path in (directory.root / "lease").iterdir())


def write(directory: StudyDirectory, number: int, content: str) -> None:
    folder = directory.root / "lease"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / str(number)).write_text(content)


def lock(directory: StudyDirectory) -> list[str]:
    """Take the lease and give it back; return what was said of it."""
    warnings: list[str] = []
    with directory.locked(warnings.append):
        directory.require_lease()
    return warnings


def test_a_run_that_was_killed_is_replaced_at_once_by_name(directory: StudyDirectory) -> None:
    with holder(directory) as process:
        assert directory.running
        with pytest.raises(StudyBusyError, match=rf"is being run by process {process.pid} of "):
            lock(directory)
        process.kill()
        process.wait()
        assert not StudyDirectory(directory.root).running
        [text] = lock(directory)
        assert f"was being run by process {process.pid} of " in text
        assert "which is gone: this run takes it over" in text


def test_one_file_is_kept_however_often_a_study_is_run(directory: StudyDirectory) -> None:
    for number in range(1, 4):
        assert lock(directory) == []
        assert files(directory) == [str(number)]
        assert (directory.root / "lease" / str(number)).read_bytes() == b""


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(
    "content", ["{", "[1]", '{"host": 1}', "\x00", json.dumps({"host": "a", "process": 1})]
)
def test_a_damaged_lease_is_that_of_another_process_until_it_is_silent(
    directory: StudyDirectory, content: str
) -> None:
    write(directory, 4, content)
    first, second = lock(directory)
    assert "may be run by another process: watching for a sign of life, 2 s at most" in first
    assert "another process, which is gone" in second
    assert files(directory) == ["5"]


def test_text_for_a_terminal_is_no_name_of_a_holder(directory: StudyDirectory) -> None:
    own = asdict(Holder.this_process())
    write(directory, 1, json.dumps({**own, "host": "\x1b[2J"}))
    assert FolderLease(directory.root / "lease").read().holder is None


def test_what_a_killed_process_has_left_beside_the_lease_goes(directory: StudyDirectory) -> None:
    write(directory, 3, "")
    for name in ("0123abcd" * 4, f".{'0123abcd' * 4}.new"):
        (directory.root / "lease" / name).write_text("{")
    lock(directory)
    assert files(directory) == ["4"]


def test_a_link_in_a_strangers_study_leads_to_no_other_folder(
    directory: StudyDirectory, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "1").write_text("mine")
    directory.root.mkdir()
    (directory.root / "lease").symlink_to(tmp_path / "mine")
    with pytest.raises(UsageError, match="lease is a link to another folder"):
        lock(directory)
    assert (tmp_path / "mine" / "1").read_text() == "mine"


@pytest.mark.parametrize("name", ["007", "\u0669", "notes.txt", "0"])
def test_a_file_that_no_process_made_is_left_alone(directory: StudyDirectory, name: str) -> None:
    (directory.root / "lease").mkdir(parents=True)
    (directory.root / "lease" / name).write_text("mine")
    assert lock(directory) == []
    assert files(directory) == sorted(["1", name])


@pytest.mark.parametrize("kind", ["pipe", "folder", "link"])
def test_what_is_no_file_neither_hangs_nor_is_followed(
    directory: StudyDirectory, kind: str
) -> None:
    path = directory.root / "lease" / "1"
    path.parent.mkdir(parents=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case _:
            path.symlink_to("nowhere")
    assert directory.holder is None
    assert not directory.running


def test_a_process_that_was_held_up_takes_nothing_that_was_taken_meanwhile(
    directory: StudyDirectory,
) -> None:
    write(directory, 1, "")
    late = FolderLease(directory.root / "lease")
    state = late.read()
    lock(directory)
    with directory.locked():
        assert files(directory) == ["3"]
        assert not late.take(state, Holder.this_process())
        assert files(directory) == ["3"]
        directory.require_lease()


def test_a_file_system_without_hard_links_will_do(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    with directory.locked():
        directory.require_lease()
        with pytest.raises(StudyBusyError):
            lock(directory)
    assert lock(directory) == []


def test_a_full_disk_stops_neither_the_beat_nor_the_release(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither writes a byte."""
    store = FolderLease(directory.root / "lease")
    (directory.root / "lease").mkdir(parents=True)
    assert store.take(store.read(), Holder.this_process())

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("builtins.open", full)
        disk.setattr(Path, "open", full)
        disk.setattr(os, "write", full)
        assert store.beat()
        store.release()
    assert store.read().free


def test_a_folder_that_is_gone_ends_the_run(directory: StudyDirectory) -> None:
    with directory.locked():
        (directory.root / "lease").rename(directory.root / "moved")
        with pytest.raises(StorageError, match=r"lease of study quick in .* was removed"):
            directory.require_lease()


def test_a_stopped_process_finds_out_that_another_host_took_over(
    directory: StudyDirectory,
) -> None:
    with directory.locked():
        own = asdict(Holder.this_process())
        write(directory, 2, json.dumps({**own, "host": "other", "machine": "b pid:[1]"}))
        with pytest.raises(StorageError, match=r"was taken over by process .* on other, since"):
            directory.require_lease()


def _can_unshare() -> bool:
    command = ["unshare", "--uts", "--pid", "--fork", "--mount-proc", "true"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.mark.usefixtures("quick")
@pytest.mark.skipif(not _can_unshare(), reason="needs the right to make namespaces")
def test_two_hosts_on_one_folder_are_refused_by_name_until_one_is_silent(
    directory: StudyDirectory,
) -> None:
    """Namespaces stand in for the other host: it has a name and process ids of its own."""
    script = 'hostname other-host; exec "$@"'
    other_host = ("unshare", "--uts", "--pid", "--fork", "--mount-proc", "sh", "-c", script, "sh")
    with holder(directory, *other_host) as process:
        assert directory.holder is not None
        assert "can only be seen there" in directory.holder.text
        with pytest.raises(StudyBusyError, match=r"process 1 of \w+ on other-host, since 20"):
            lock(directory)
        for each in psutil.Process(process.pid).children():
            each.kill()
        process.wait()
        first, second = lock(directory)
        assert "may be run by process 1 of" in first
        assert "on other-host" in second

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from optimizer.errors import StorageError, StudyBusyError, UsageError
from optimizer.files.atomic import write_json, write_text
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.directory import StudyDirectory
from tests.unit.strategies import trial_records
from tests.unit.studies import four_points, ok, record_of

SPACE = four_points()
RECORD = record_of(3, SPACE.config(SPACE.baseline), ok(100))
pytestmark = pytest.mark.usefixtures("fast_disk")


@pytest.fixture
def directory(tmp_path: Path) -> StudyDirectory:
    return StudyDirectory(tmp_path / "results" / "quick")


def fail_with_disk_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)


def test_a_file_is_written_into_folders_that_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file"
    write_text(path, "first ü\n")
    write_text(path, "second ü\n")
    assert path.read_text(encoding="utf-8") == "second ü\n"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    fail_with_disk_full(monkeypatch)
    with pytest.raises(StorageError) as caught:
        write_text(path, "new")
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"


def test_a_write_that_fails_makes_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with_disk_full(monkeypatch)
    with pytest.raises(StorageError):
        write_text(tmp_path / "file", "new")
    assert not (tmp_path / "file").exists()


def test_a_write_after_a_failed_one_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        fail_with_disk_full(broken)
        with pytest.raises(StorageError):
            write_text(tmp_path / "file", "a longer text that was never finished")
    write_text(tmp_path / "file", "short")
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "short"


def test_the_disk_has_it_before_it_gets_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def flushed(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink()
        seen.append((name.read_text(), (tmp_path / "file").exists()))

    monkeypatch.setattr(os, "fsync", flushed)
    write_text(tmp_path / "file", "whole")
    assert seen == [("whole", False)]


def test_json_has_no_infinity(tmp_path: Path) -> None:
    write_json(tmp_path / "file", {"a": [1, None]})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "file", {"a": float("inf")})
    assert json.loads((tmp_path / "file").read_text()) == {"a": [1, None]}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(record=trial_records)
def test_a_record_is_read_back_as_it_was(directory: StudyDirectory, record: TrialRecord) -> None:
    directory.trials.write(record)
    assert directory.trials.read_all()[record.number] == record


def test_records_are_named_by_number_and_read_in_order(directory: StudyDirectory) -> None:
    for number in (12, 3, 100_000):
        directory.trials.write(record_of(number, RECORD.config, ok(100)))
    names = sorted(path.name for path in directory.trials.folder.iterdir())
    assert names == ["00003.json", "00012.json", "100000.json"]
    assert set(directory.trials.read_all()) == {3, 12, 100_000}
    assert directory.confirmations.read_all() == {}


def test_an_unfinished_record_is_none(directory: StudyDirectory) -> None:
    directory.trials.write(RECORD)
    (directory.trials.folder / ".00004.json.new").write_text("{")
    assert set(directory.trials.read_all()) == {3}


@pytest.mark.parametrize("damage", ["", "{", '{"number": 3}', "[]", "\x00\x00"])
def test_a_damaged_record_is_named(directory: StudyDirectory, damage: str) -> None:
    directory.trials.write(RECORD)
    path = directory.trials.folder / "00004.json"
    path.write_text(damage)
    with pytest.raises(StorageError) as caught:
        directory.trials.read_all()
    assert str(caught.value).startswith(f"cannot read {path}: ")


def test_a_record_of_another_schema_is_refused(directory: StudyDirectory) -> None:
    directory.trials.write(RECORD)
    path = directory.trials.folder / "00003.json"
    path.write_text(path.read_text().replace('"schema_version":4', '"schema_version":3'))
    rule = r"00003\.json: schema version must be 4, got 3; .* --study NEW"
    with pytest.raises(StorageError, match=rule):
        directory.trials.read_all()


def test_a_record_that_cannot_be_written_is_named(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with_disk_full(monkeypatch)
    with pytest.raises(StorageError, match=r"^cannot write .*/00003\.json: No space left"):
        directory.trials.write(RECORD)
    assert directory.trials.read_all() == {}


@pytest.mark.parametrize("damage", [None, "", "{"])
def test_a_damaged_file_of_the_study_is_named(
    directory: StudyDirectory, damage: str | None
) -> None:
    if damage is not None:
        write_text(directory.summary, damage)
    with pytest.raises(StorageError, match=r"^cannot read .*/quick/summary\.json: "):
        directory.read_json(directory.summary)


def test_a_study_is_held_by_one_at_a_time(directory: StudyDirectory) -> None:
    same = StudyDirectory(directory.root)
    with directory.locked():
        with pytest.raises(StudyBusyError) as caught, same.locked():
            pytest.fail("held twice")
        assert f"is being run by process {os.getpid()} of " in str(caught.value)
    with same.locked():
        pass


def test_a_held_study_does_not_hold_another(directory: StudyDirectory) -> None:
    with directory.locked(), StudyDirectory(directory.root.with_name("other")).locked():
        pass


def test_results_that_cannot_be_written_are_a_mistake_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "results").write_text("a file")
    directory = StudyDirectory(tmp_path / "results" / "quick")
    with pytest.raises(UsageError) as caught, directory.locked():
        pytest.fail("made in a file")
    assert str(caught.value) == (
        f"results cannot be written to {tmp_path}/results/quick: Not a directory"
    )


def test_a_disk_that_fills_up_while_locking_is_told(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with_disk_full(monkeypatch)
    with pytest.raises(StorageError, match=r"^cannot write .*/lease/.*: No space"):
        directory.locked().__enter__()


def test_a_disk_without_room_for_the_folder_is_told(
    directory: StudyDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StorageError, match=r"^cannot write .*/lease: No space"):
        directory.locked().__enter__()

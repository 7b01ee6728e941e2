"""The log of a run: every event as lines with the time."""

from __future__ import annotations

import errno
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from optimizer.cli.interruption import Interrupted
from optimizer.errors import StorageError
from optimizer.study.events import LevelFinished, LevelStarted, Note, PhaseStarted, StepStarted
from optimizer.study.run_log import RunLog, run_log
from tests.unit.studies import level

BEGUN = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def clock() -> datetime:
    return BEGUN


def test_every_event_is_kept_with_the_time(tmp_path: Path) -> None:
    path = tmp_path / "logs" / "run.log"
    with run_log(path, clock) as watch:
        watch(PhaseStarted("search", 12, 3600.0))
        watch(StepStarted("loading the model"))
        watch(LevelStarted(150.0, 4.0))
        watch(LevelFinished(level(0.3, 45.67)))
        watch(Note("one\ntwo"))
    assert path.read_text() == (
        "2026-03-01 12:00:00+00:00 -- run started\n"
        "2026-03-01 12:00:00+00:00 search: up to 12 steps\n"
        "2026-03-01 12:00:00+00:00       loading the model\n"
        "2026-03-01 12:00:00+00:00       offering 150/s for 4 s\n"
        "2026-03-01 12:00:00+00:00       150/s: 150/s served, p95 45.7 ms\n"
        "2026-03-01 12:00:00+00:00 one\n"
        "2026-03-01 12:00:00+00:00 two\n"
        "2026-03-01 12:00:00+00:00 -- run done\n"
    )


def test_a_second_run_is_appended(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    later = iter(BEGUN + timedelta(seconds=n) for n in range(4))
    for _ in range(2):
        with run_log(path, lambda: next(later)):
            pass
    assert [line[17:19] for line in path.read_text().splitlines()] == ["00", "01", "02", "03"]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Interrupted("SIGTERM"), "-- run ended: interrupted (SIGTERM)"),
        (KeyboardInterrupt(), "-- run ended: interrupted"),
        (StorageError("cannot write a"), "-- run ended: cannot write a"),
    ],
)
def test_it_says_how_a_run_ended(tmp_path: Path, error: BaseException, said: str) -> None:
    path = tmp_path / "run.log"
    with pytest.raises(type(error)), run_log(path, clock):
        raise error
    assert path.read_text().splitlines()[-1].endswith(said)


def test_a_log_that_cannot_be_opened_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file in the place of the folder")
    with run_log(tmp_path / "logs" / "run.log", clock) as watch:
        watch(Note("said"))


def test_a_full_disk_ends_the_log_and_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def flush(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    file = Full()
    monkeypatch.setattr("optimizer.study.run_log.open_log", lambda _: file)
    log = RunLog(tmp_path / "run.log", clock)
    log(Note("one"))
    log(Note("two"))
    assert b"one" in file.getvalue()
    assert b"two" not in file.getvalue()


def test_a_large_log_begins_anew_and_one_before_it_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("optimizer.study.run_log", "optimizer.files.log_file"):
        monkeypatch.setattr(f"{module}.LARGEST_BYTES", 1000)
    path = tmp_path / "run.log"
    with run_log(path, clock) as watch:
        for number in range(100):
            watch(Note(f"note {number} {'x' * 100}"))
    assert {file.name for file in tmp_path.iterdir()} == {"run.log", "run.log.1"}
    assert all(file.stat().st_size < 1300 for file in tmp_path.iterdir())
    assert "note 99" in path.read_text()

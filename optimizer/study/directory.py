"""results/<study>/: where everything about a study is kept, and how it is written."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.errors import (
    DamagedStudyError,
    StorageError,
    StudyBusyError,
    UsageError,
    storage_errors,
)
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import (
    UnreadableError,
    check_ranges,
    is_safe_name,
    parse_json,
    read_bytes,
)
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import SCHEMA_VERSION, TrialRecord
from optimizer.space_file.section import first_mistake

_LOOKING_SECONDS = 0.2


class StudyDirectory:
    """The files of one study.

    Args:
        root: results/<study>; made on first use.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.journal = root / "study.journal"
        self.space = root / "space.json"
        self.searched = root / "searched.json"
        self.sources = root / "sources.json"
        self.prepared = root / "prepared.json"
        self.summary = root / "summary.json"
        self.best = root / "best"
        self.baseline = root / "baseline"
        self.repository = root / "server" / "repository"
        self.server_log = root / "logs" / "server.log"
        self.build_log = root / "logs" / "build.log"
        self.run_log = root / "logs" / "run.log"
        self.progress = root / "progress.json"
        self.artifacts = root / "artifacts"
        self.calibration = Records(root / "calibration")
        self.trials = Records(root / "trials", scored=True, reported=True)
        self.confirmations = Records(root / "confirmations", reported=True)
        self.drift_runs = Records(root / "references")

    @property
    def name(self) -> str:
        """The study's name."""
        return self.root.name

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the study: one process at a time may run it. The lock ends with the process.

        Raises:
            UsageError: when the directory cannot be made or written.
            StudyBusyError: when another process holds it.
        """
        path = self.root / "lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            # Unbuffered: what a full disk refuses must not be written again on closing.
            file = path.open("a+b", buffering=0)
        except OSError as error:
            raise UsageError(
                f"results cannot be written to {self.root}: {error.strerror}"
            ) from error
        with file:
            if not _taken(file):
                file.seek(0)
                holder = file.read().decode().strip() or "unknown"
                raise StudyBusyError(f"study {self.name} is being run by process {holder}")
            with storage_errors(path):
                file.truncate(0)
                file.write(str(os.getpid()).encode())
            yield

    @property
    def held(self) -> bool:
        """Whether a process runs the study now."""
        try:
            with (self.root / "lock").open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def read_json(self, path: Path) -> dict[str, Any]:
        """Read one of the study's own JSON files, with objects that miss no key in silence.

        Raises:
            DamagedStudyError: now, or when a key is asked for that is not there.
        """

        class Object(dict[str, Any]):
            def __missing__(self, key: str) -> Any:
                raise DamagedStudyError(path, f"{key} is missing")

        try:
            data = parse_json(read_bytes(path), Object)
        except UnreadableError as error:
            raise DamagedStudyError(path, error) from error
        if not isinstance(data, Object):
            raise DamagedStudyError(path, "must be a JSON object")
        return data


def _taken(file: IO[bytes]) -> bool:
    """Take the lock. Who only looks whether it is held has it for a moment: that is waited for."""
    end = time.monotonic() + _LOOKING_SECONDS
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.01)


class RecordingDirectory(StudyDirectory):
    """The files of an exhaustive recording; its `trials` hold every point, measured once or again.

    Args:
        root: results/<study>/recorded; made on first use.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.table = root / "table.csv"
        self.latencies = Records(root / "latencies")
        self.repeats = Records(root / "repeats")


class _Versioned(BaseModel):
    """What is read of a record before its version is known."""

    schema_version: int


_PERCENTILES = {50.0, 95.0, 99.0}
"""Of the latency, that every level with a reply has."""


class Records:
    """A folder of TrialRecords, one JSON file each, named by their number.

    Args:
        scored: whether a record that met the limits has a score, as those of the search have.
        reported: whether every level has the percentiles that reports show.
    """

    _json = TypeAdapter(TrialRecord)

    def __init__(self, folder: Path, *, scored: bool = False, reported: bool = False) -> None:
        self.folder = folder
        self._scored = scored
        self._reported = reported

    def write(self, record: TrialRecord) -> None:
        """Keep a record. Raises StorageError."""
        text = self._json.dump_json(record, indent=2).decode()
        write_text(self.folder / f"{record.number:05}.json", text + "\n")

    def read_all(self) -> Mapping[int, TrialRecord]:
        """All records by number. Raises StorageError, naming the file, when one is damaged."""
        records = [self._read(path) for path in sorted(self.folder.glob("[0-9]*.json"))]
        return {record.number: record for record in records}

    def _read(self, path: Path) -> TrialRecord:
        try:
            data = parse_json(read_bytes(path))
            version = _Versioned.model_validate(data).schema_version
            if version != SCHEMA_VERSION:
                raise StorageError(
                    f"{path}: schema version must be {SCHEMA_VERSION}, got {version}; "
                    "this study belongs to another version: begin one with --study NEW"
                )
            record = self._json.validate_python(data)
            _check_record(record, path)
            if self._scored and record.outcome == "ok" and record.score is None:
                raise ValueError("outcome must not be ok without a score")
            if self._reported and record.measurement is not None:
                _check_percentiles(record.measurement)
        except ValidationError as error:
            raise DamagedStudyError(path, first_mistake(error)) from error
        except ValueError as error:
            raise DamagedStudyError(path, error) from error
        return record


def _check_record(record: TrialRecord, path: Path) -> None:
    """Raise ValueError where a record is not one that a run has written."""
    check_ranges(record)
    if path.stem != f"{record.number:05}":
        raise ValueError(f"number must be that of the file, got {record.number}")
    refuse_unsafe_names(
        name for model in record.config.models for name in (model.name, model.artifact.model)
    )
    if record.outcome == "ok" and record.measurement is None:
        raise ValueError("outcome must not be ok without a measurement")
    if not record.config.models or not all(model.groups for model in record.config.models):
        raise ValueError("config must have a model, and every model an instance group")
    for measurement in (record.measurement, *(each.measurement for each in record.further)):
        if measurement is not None:
            _check_measurement(measurement)


def _check_measurement(measurement: Measurement) -> None:
    if not (measurement.levels and all(level.streams for level in measurement.levels)):
        raise ValueError("measurement must have load levels, and every level a stream")


def _check_percentiles(measurement: Measurement) -> None:
    for level in measurement.levels:
        for stream in level.streams:
            if stream.completed and not {p.percentile for p in stream.latencies} >= _PERCENTILES:
                raise ValueError("measurement must have the percentiles 50, 95 and 99")


def refuse_unsafe_names(names: Iterable[str]) -> None:
    """Raise ValueError where a model's name, by which folders are called, could lead elsewhere."""
    for name in names:
        if not is_safe_name(name):
            raise ValueError(f"{name[:80]!r} is no name of a model")

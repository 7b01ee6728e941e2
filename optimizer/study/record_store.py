"""A folder of trial records, checked when they are read: a study may come from a stranger."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from optimizer.configuration.model_graph import NO_GRAPH
from optimizer.errors import DamagedStudyError, StorageError
from optimizer.files.atomic import write_text
from optimizer.files.untrusted import is_safe_name, read_bytes
from optimizer.measurement.level import Measurement
from optimizer.measurement.trial_record import SCHEMA_VERSION, TrialRecord
from optimizer.space_file.section import first_mistake
from optimizer.study.record_json import record_from_json, record_to_json
from optimizer.study.stored_levels import with_stored_levels

_PERCENTILES = {50.0, 95.0, 99.0}
"""Latency percentiles that every level with a reply has."""

_RECENT = 128
"""Number of records whose levels stay in memory."""


class _Versioned(BaseModel):
    """The part that records of all versions have."""

    model_config = ConfigDict(defer_build=True)  # it is asked only of what is no record
    schema_version: int


class RecordStore:
    """A folder of TrialRecords, one JSON file each, named by their number.

    Args:
        scored: whether records that met the limits must have a score, as those of the search do.
        reported: whether every level must have the percentiles that reports show.
    """

    def __init__(self, folder: Path, *, scored: bool = False, reported: bool = False) -> None:
        self.folder = folder
        self._scored = scored
        self._reported = reported
        self._recent: dict[int, TrialRecord] = {}

    def write(self, record: TrialRecord) -> None:
        """Write a record. Raises StorageError."""
        write_text(self._path(record.number), record_to_json(record) + "\n")

    def __len__(self) -> int:
        """Return the number of records, without reading them."""
        return len(self._names())

    def read_first(self) -> TrialRecord | None:
        """Return the record with the lowest number; None without any. Raises StorageError."""
        names = self._names()
        return self._read(self.folder / min(names)) if names else None

    def read(self, number: int) -> TrialRecord | None:
        """Return one record; None where there is none. Raises StorageError for a damaged one."""
        path = self._path(number)
        return self._read(path) if path.exists() else None

    def read_all(self) -> Mapping[int, TrialRecord]:
        """Return all records by number. Raises StorageError, naming the file, for a damaged one."""
        return {record.number: record for record in self._records()}

    def read_to_keep(self) -> Mapping[int, TrialRecord]:
        """Return all records by number as `read_all` does, see `kept`."""
        return {record.number: self.kept(record) for record in self._records()}

    def kept(self, record: TrialRecord) -> TrialRecord:
        """Return a written record as a long run keeps it: its levels are read when needed."""
        self._remember(record)
        return with_stored_levels(record, self._with_levels)

    def _with_levels(self, number: int) -> TrialRecord:
        if number not in self._recent:
            self._remember(self._read(self._path(number)))
        return self._recent[number]

    def _remember(self, record: TrialRecord) -> None:
        self._recent[record.number] = record
        if len(self._recent) > _RECENT:
            del self._recent[next(iter(self._recent))]

    def _records(self) -> Iterator[TrialRecord]:
        return (self._read(self.folder / name) for name in sorted(self._names()))

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:05}.json"

    def _names(self) -> list[str]:
        return [path.name for path in self.folder.glob("[0-9]*.json")]

    def _read(self, path: Path) -> TrialRecord:
        try:
            record = _of_this_version(read_bytes(path), path)
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


def _of_this_version(content: bytes, path: Path) -> TrialRecord:
    """Return the record in JSON. Raises StorageError for one of another version of the schema."""
    try:
        record = record_from_json(content)
    except ValidationError:
        # One of another version may have other fields.
        _require_this_version(_Versioned.model_validate_json(content).schema_version, path)
        raise
    _require_this_version(record.schema_version, path)
    return record


def _require_this_version(version: int, path: Path) -> None:
    if version != SCHEMA_VERSION:
        raise StorageError(
            f"{path}: schema version must be {SCHEMA_VERSION}, got {version}; this study was "
            "written by another version of the optimizer: start a new one with --study NEW"
        )


def _check_record(record: TrialRecord, path: Path) -> None:
    """Raise ValueError for a record that no run can have written."""
    if path.stem != f"{record.number:05}":
        raise ValueError(f"number must be that of the file, got {record.number}")
    refuse_unsafe_names(
        name for model in record.config.models for name in (model.name, model.artifact.model)
    )
    (record.config.graph or NO_GRAPH).check([model.name for model in record.config.models])
    if record.outcome == "ok" and record.measurement is None:
        raise ValueError("outcome must not be ok without a measurement")
    if not record.config.models or not all(model.groups for model in record.config.models):
        raise ValueError("config must have a model, and every model an instance group")
    # An extra limit needs no level of its own where those of the study's limit tell enough.
    levels = [level for each in record.further for level in each.measurement.levels]
    if record.measurement is not None:
        if not record.measurement.levels:
            raise ValueError("measurement must have load levels")
        levels += record.measurement.levels
    if not all(level.streams for level in levels):
        raise ValueError("every load level of a measurement must have a stream")


def _check_percentiles(measurement: Measurement) -> None:
    for level in measurement.levels:
        for stream in level.streams:
            if stream.completed and not {p.percentile for p in stream.latencies} >= _PERCENTILES:
                raise ValueError("measurement must have the percentiles 50, 95 and 99")


def refuse_unsafe_names(names: Iterable[str]) -> None:
    """Raise ValueError for a model name that is no safe folder name."""
    for name in names:
        if not is_safe_name(name):
            raise ValueError(f"{name[:80]!r} is not a valid model name")

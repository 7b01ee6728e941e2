"""The JSON files that a study keeps beside its records, checked when they are read.

A study's folder may come from another machine, or from a stranger. Each reader raises
`DamagedStudyError`, which names the file; so does a key that is missing where it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.errors import DamagedStudyError
from optimizer.files.untrusted import check_ranges
from optimizer.machine.fingerprint import Machine
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory


class _Shapes(BaseModel):
    batch_sizes: list[int]
    lengths: list[int]


class _FailingBatch(BaseModel):
    size: int
    reason: str


class _Timing(BaseModel):
    batch_size: int
    served_ms: float
    bare_ms: float


class _Gated(BaseModel):
    artifact: str = ""
    sha256: str | None = None
    accuracy: dict[str, Any] | None = None
    dropped: str | None = None
    instance_mib: float | None = None
    shapes: _Shapes | None = None
    failing_batch: _FailingBatch | None = None
    timings: list[_Timing] = []
    int8_share: float | None = None


class _Prepared(BaseModel):
    building_seconds: float = 0.0
    artifacts: list[_Gated] = []


class _Begun(BaseModel):
    space: dict[str, Any]
    machine: dict[str, Any]


_MACHINE = TypeAdapter(Machine)


@dataclass(frozen=True)
class StudyStart:
    """What a study was begun with.

    Attributes:
        content: of the space file, see `Space.content`.
        data: all of the file.
    """

    content: Mapping[str, Any]
    machine: Machine
    data: Mapping[str, Any]


def read_start(directory: StudyDirectory) -> StudyStart:
    """Return what a study was begun with. Raises DamagedStudyError."""
    path = directory.space
    data = directory.read_json(path)
    try:
        begun = _Begun.model_validate(data)
        packages = begun.machine.get("packages")
        own = {**begun.machine, "packages": [*packages.items()] if packages else ()}
        machine = _MACHINE.validate_python(own)
        check_ranges(machine, "machine")
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error
    except (ValueError, AttributeError) as error:
        raise DamagedStudyError(path, error) from error
    return StudyStart(data["space"], machine, data)


def read_prepared(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return what the prepare phase has made. Raises DamagedStudyError."""
    data = directory.read_json(directory.prepared)
    try:
        # As JSON, where no text passes for a number.
        _Prepared.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise DamagedStudyError(directory.prepared, first_mistake(error)) from error
    return data

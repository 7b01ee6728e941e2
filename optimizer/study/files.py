"""The JSON files that a study keeps beside its records, checked when they are read.

A study's folder may come from another machine, or from a stranger. Each reader raises
`DamagedStudyError`, which names the file; so does a key that is missing where it is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.errors import DamagedStudyError
from optimizer.files.untrusted import check_ranges
from optimizer.machine.fingerprint import Machine
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory


class _Entry(BaseModel):
    description: str = ""
    config: dict[str, Any] = {}
    capacity_per_second: float = 0.0
    latency_ms: dict[str, float] = {}
    latency_ms_at_demand_p95: float | None = None
    usd_per_million_at_capacity: float = 0.0
    usd_per_million_at_demand: float = 0.0
    replicas: int = 0
    fleet_usd_per_hour: float = 0.0


class _Claim(BaseModel):
    rival: str = ""
    capacity_ratio: float | None = None
    capacity_ratio_low: float | None = None
    capacity_ratio_high: float | None = None
    confidence: float | None = None
    apart: bool | None = None


class _Pace(BaseModel):
    reference: str = ""
    saturation_per_second: list[float] = []
    largest_change: float | None = None


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


class _Summary(BaseModel):
    ended: str = ""
    space_exhausted: bool = False
    settled: bool = False
    remaining_gap: float | None = None
    trials: dict[str, int] = {}
    baseline: _Entry | None = None
    best: _Entry | None = None
    equal_cost: list[_Entry] = []
    claims: list[_Claim] = []
    pace: _Pace = _Pace()
    accuracy_evidence: str = ""
    artifacts: list[_Gated] = []
    measuring_seconds: float = 0.0
    building_seconds: float = 0.0
    overhead_seconds_per_trial_median: float = 0.0


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


def read_summary(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return what a study came to. Raises DamagedStudyError."""
    data = directory.read_json(directory.summary)
    _check(_Summary, data, directory.summary)
    return data


def read_prepared(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return what the prepare phase has made. Raises DamagedStudyError."""
    data = directory.read_json(directory.prepared)
    _check(_Prepared, data, directory.prepared)
    return data


def _check(shape: type[BaseModel], data: object, path: Path) -> None:
    """Check the types of what is there; what an earlier version did not write may be missing."""
    try:
        # As JSON, where no text passes for a number.
        shape.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error

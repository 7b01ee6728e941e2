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
from optimizer.machine.fingerprint import Machine
from optimizer.search.study_directory import StudyDirectory
from optimizer.section import first_mistake
from optimizer.untrusted import check_ranges


class _Entry(BaseModel):
    description: str | None = None
    config: dict[str, Any] | None = None
    capacity_per_second: float | None = None
    latency_ms: dict[str, float] | None = None
    latency_ms_at_demand_p95: float | None = None
    usd_per_million_at_capacity: float | None = None
    usd_per_million_at_demand: float | None = None
    replicas: int | None = None
    fleet_usd_per_hour: float | None = None


class _Claim(BaseModel):
    rival: str | None = None
    capacity_ratio: float | None = None
    capacity_ratio_low: float | None = None
    capacity_ratio_high: float | None = None
    confidence: float | None = None
    apart: bool | None = None


class _Pace(BaseModel):
    reference: str | None = None
    saturation_per_second: list[float] | None = None
    largest_change: float | None = None


class _Gated(BaseModel):
    artifact: str | None = None
    sha256: str | None = None
    accuracy: dict[str, Any] | None = None
    dropped: str | None = None
    instance_mib: float | None = None


class _Summary(BaseModel):
    ended: str | None = None
    space_exhausted: bool | None = None
    settled: bool | None = None
    remaining_gap: float | None = None
    trials: dict[str, int] | None = None
    baseline: _Entry | None = None
    best: _Entry | None = None
    equal_cost: list[_Entry] | None = None
    claims: list[_Claim] | None = None
    pace: _Pace | None = None
    accuracy_evidence: str | None = None
    artifacts: list[_Gated] | None = None
    measuring_seconds: float | None = None
    building_seconds: float | None = None
    overhead_seconds_per_trial_median: float | None = None


class _Prepared(BaseModel):
    building_seconds: float | None = None
    artifacts: list[_Gated] | None = None


class _Begun(BaseModel):
    space: dict[str, Any]
    machine: dict[str, Any]


_MACHINE = TypeAdapter(Machine)


@dataclass(frozen=True)
class Begun:
    """What a study was begun with.

    Attributes:
        content: of the space file, see `Space.content`.
        data: all of the file.
    """

    content: Mapping[str, Any]
    machine: Machine
    data: Mapping[str, Any]


def read_begun(directory: StudyDirectory) -> Begun:
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
    return Begun(data["space"], machine, data)


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

"""The JSON files that a study keeps beside its records, checked when they are read.

A study's folder may come from another machine, or from a stranger. Each reader raises
`DamagedStudyError`, which names the file; so does a key that is missing where it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

from pydantic import TypeAdapter, ValidationError

from optimizer.errors import DamagedStudyError
from optimizer.machine.fingerprint import Machine
from optimizer.search.study_directory import StudyDirectory
from optimizer.section import first_mistake
from optimizer.untrusted import check_ranges


class _Entry(TypedDict, total=False):
    description: str
    config: dict[str, Any]
    capacity_per_second: float
    latency_ms: dict[str, float]
    latency_ms_at_demand_p95: float
    usd_per_million_at_capacity: float
    usd_per_million_at_demand: float
    replicas: int
    fleet_usd_per_hour: float


class _Claim(TypedDict, total=False):
    rival: str
    capacity_ratio: float
    capacity_ratio_low: float
    capacity_ratio_high: float
    confidence: float
    apart: bool


class _Pace(TypedDict, total=False):
    reference: str
    saturation_per_second: list[float]
    largest_change: float | None


class _Gated(TypedDict, total=False):
    artifact: str
    sha256: str | None
    accuracy: dict[str, Any] | None
    dropped: str | None
    instance_mib: float | None


class _Summary(TypedDict, total=False):
    ended: str
    space_exhausted: bool
    settled: bool
    remaining_gap: float | None
    trials: dict[str, int]
    baseline: _Entry | None
    best: _Entry | None
    equal_cost: list[_Entry]
    claims: list[_Claim]
    pace: _Pace
    accuracy_evidence: str
    artifacts: list[_Gated]
    measuring_seconds: float
    building_seconds: float
    overhead_seconds_per_trial_median: float


class _Prepared(TypedDict, total=False):
    building_seconds: float
    artifacts: list[_Gated]


class _Begun(TypedDict):
    space: dict[str, Any]
    machine: dict[str, Any]


_SUMMARY = TypeAdapter(_Summary)
_PREPARED = TypeAdapter(_Prepared)
_BEGUN = TypeAdapter(_Begun)
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
        begun = _BEGUN.validate_python(data)
        packages = begun["machine"].get("packages")
        own = {**begun["machine"], "packages": [*packages.items()] if packages else ()}
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
    _check(_SUMMARY, data, directory.summary)
    return data


def read_prepared(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return what the prepare phase has made. Raises DamagedStudyError."""
    data = directory.read_json(directory.prepared)
    _check(_PREPARED, data, directory.prepared)
    return data


def _check(shape: TypeAdapter[Any], data: object, path: Any) -> None:
    try:
        shape.validate_python(data, strict=True)
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error

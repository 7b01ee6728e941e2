"""The JSON files that a study keeps beside its records, checked when they are read.

A study's folder may come from another machine or a stranger. Each reader raises
`DamagedStudyError`, which names the file; so does reading a key that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.artifacts.source_card import SourceCard, read_card
from optimizer.errors import DamagedStudyError, StorageError
from optimizer.files.atomic import write_json
from optimizer.files.untrusted import check_ranges
from optimizer.machine.fingerprint import Machine
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory
from optimizer.workload.model_spec import ModelSpec


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


class _Start(BaseModel):
    space: dict[str, Any]
    machine: dict[str, Any]


_MACHINE = TypeAdapter(Machine)


@dataclass(frozen=True)
class StudyStart:
    """The space file and machine that a study was started with.

    Attributes:
        content: of the space file, see `Space.content`.
        data: everything in space.json.
    """

    content: Mapping[str, Any]
    machine: Machine
    data: Mapping[str, Any]


def read_start(directory: StudyDirectory) -> StudyStart:
    """Return what a study was started with. Raises DamagedStudyError."""
    path = directory.space
    data = directory.read_json(path)
    try:
        start = _Start.model_validate(data)
        packages = start.machine.get("packages")
        fields = {**start.machine, "packages": [*packages.items()] if packages else ()}
        machine = _MACHINE.validate_python(fields)
        check_ranges(machine, "machine")
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error
    except (ValueError, AttributeError) as error:
        raise DamagedStudyError(path, error) from error
    return StudyStart(data["space"], machine, data)


def read_summary(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return summary.json. Raises DamagedStudyError."""
    return _checked(_Summary, directory, directory.summary)


def read_prepared(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return prepared.json, the results of the prepare phase. Raises DamagedStudyError."""
    return _checked(_Prepared, directory, directory.prepared)


def _checked(schema: type[BaseModel], directory: StudyDirectory, path: Path) -> Mapping[str, Any]:
    """Read a file and check the types of its keys; earlier versions may lack some keys."""
    data = directory.read_json(path)
    try:
        # As JSON, where no text passes for a number.
        schema.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise DamagedStudyError(path, first_mistake(error)) from error
    return data


def write_source_cards(directory: StudyDirectory, models: Sequence[ModelSpec]) -> None:
    """Write sources.json: licences and labels, read while the models' sources are at hand.

    Raises:
        StorageError: when it cannot be written.
    """
    cards = {model.name: read_card(model.source) for model in models}
    write_json(directory.sources, {name: asdict(card) for name, card in cards.items()})


def read_source_cards(directory: StudyDirectory) -> Mapping[str, SourceCard]:
    """Return the source cards by model; none in a study of an earlier version.

    Raises:
        StorageError: when the file is damaged.
    """
    if not directory.sources.exists():
        return {}
    try:
        return {
            name: SourceCard(card["licence"], tuple(card["labels"]))
            for name, card in directory.read_json(directory.sources).items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise StorageError(f"cannot read {directory.sources}: invalid cards ({error})") from error

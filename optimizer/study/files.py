"""The JSON files that a study keeps beside its records, checked when they are read.

A study's folder may come from another machine or a stranger. Each reader raises
`DamagedStudyError`, which names the file; so does reading a key that is missing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from optimizer.artifacts.accuracy import FailingBatch
from optimizer.artifacts.source_card import SourceCard, read_card
from optimizer.errors import DamagedStudyError, StorageError
from optimizer.files.atomic import write_json
from optimizer.files.untrusted import check_ranges
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.host_share import HostTiming
from optimizer.space_file.parameter_schema import with_defaults
from optimizer.space_file.section import first_mistake
from optimizer.study.directory import StudyDirectory
from optimizer.study.gated_artifact import GatedShapes
from optimizer.workload.model_spec import ModelSpec


class _Gated(BaseModel):
    artifact: str = ""
    sha256: str | None = None
    accuracy: dict[str, Any] | None = None
    dropped: str | None = None
    instance_mib: float | None = None
    host_mib: float | None = None
    shapes: GatedShapes | None = None
    failing_batch: FailingBatch | None = None
    timings: list[HostTiming] = []
    int8_share: float | None = None


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
        content: `Space.content`, with the defaults of parameters that were added since.
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
    return StudyStart(with_defaults(data["space"]), machine, data)


def read_prepared(directory: StudyDirectory) -> Mapping[str, Any]:
    """Return prepared.json, the results of the prepare phase. Raises DamagedStudyError.

    Keys that earlier versions did not write may be missing.
    """
    data = directory.read_json(directory.prepared)
    try:
        # As JSON, where no text passes for a number.
        _Prepared.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        raise DamagedStudyError(directory.prepared, first_mistake(error)) from error
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

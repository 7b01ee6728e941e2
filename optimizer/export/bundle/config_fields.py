"""Triton's model configurations field by field, to describe what changes between two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from tritonclient.grpc import model_config_pb2

from optimizer.errors import UsageError
from optimizer.export.bundle.manifest import ExportedModel

ABSENT, PRESENT = "none", "on"


@dataclass(frozen=True)
class FieldChange:
    """A field of two configurations, such as "dynamic_batching.max_queue_delay_microseconds"."""

    field: str
    before: str
    after: str


def measured_config(model: ExportedModel) -> model_config_pb2.ModelConfig:
    """Return the measured configuration. Raises UsageError where the manifest has none."""
    try:
        return json_format.ParseDict(dict(model.config), model_config_pb2.ModelConfig())
    except json_format.ParseError as error:
        raise UsageError(f"manifest.json: models.{model.name}.config: {error}") from error


def field_changes(
    before: model_config_pb2.ModelConfig, after: model_config_pb2.ModelConfig
) -> list[FieldChange]:
    """Return the fields that differ between two configurations."""
    old, new = _fields(before), _fields(after)
    changes = [
        FieldChange(field, old.get(field, ABSENT), new.get(field, ABSENT))
        for field in dict.fromkeys((*old, *new))
    ]
    return [change for change in changes if change.before != change.after]


def _fields(config: model_config_pb2.ModelConfig) -> dict[str, str]:
    return dict(_flat(json_format.MessageToDict(config, preserving_proto_field_name=True), ""))


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        if path:
            yield path, PRESENT
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        for index, item in enumerate(value):
            yield from _flat(item, f"{path}[{index}]")
    else:
        yield path, in_words(value)


def in_words(value: Any) -> str:
    """Return a value or a list as text; "none" for nothing."""
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or ABSENT
    return ABSENT if value is None else str(value)

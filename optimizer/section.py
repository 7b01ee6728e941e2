"""What every section of a space file is made of: its base, its numbers, and its mistakes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

# Strict: YAML has numbers of its own, so neither "4" nor true is one.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Positive = Annotated[Number, Field(gt=0)]
Count = Annotated[int, Field(ge=1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]

_DURATION = r"(\d+(?:\.\d+)?)([smh])"
_DURATION_RULE = "must be a number above 0 and s, m or h, such as 8h"


def duration_seconds(text: str) -> float:
    """Seconds of a duration such as "8h", "90m" or "30s". Raises ValueError for anything else."""
    match = re.fullmatch(_DURATION, text)
    if match is None or float(match[1]) == 0:
        raise ValueError(_DURATION_RULE)
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _seconds(value: object) -> object:
    """A text as a duration; a number is seconds already."""
    return duration_seconds(value) if isinstance(value, str) else value


Duration = Annotated[
    Positive,
    BeforeValidator(_seconds),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "number", "exclusiveMinimum": 0},
                {"type": "string", "pattern": f"^{_DURATION}$"},
            ]
        }
    ),
]


def wrong(key: str, rule: str, value: object) -> PydanticCustomError:
    """A mistake found below the section that is being checked."""
    context = {"key": key, "rule": rule, "value": repr(value)}
    return PydanticCustomError("space_rule", "{rule}", context)


def raise_all(section: type[BaseModel], mistakes: Sequence[PydanticCustomError]) -> None:
    """Report every mistake of a section at once; nothing without one."""
    if mistakes:
        details = [InitErrorDetails(type=each, input=None) for each in mistakes]
        raise ValidationError.from_exception_data(section.__name__, details)


class Section(BaseModel):
    """A part of a space file: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def folder_of(info: ValidationInfo) -> Path:
    """Where the space file lies; paths in it are relative to there."""
    return Path((info.context or {}).get("folder", "."))

"""What every section of a space file is made of: its base, its numbers, and its mistakes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

# Strict: YAML has numbers of its own, so neither "4" nor true is one. Bounded, so that what is
# calculated from them is a number too.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False, ge=-1e38, le=1e38)]
_LEAST = 1e-9


def _not_tiny(value: float) -> float:
    if value < _LEAST:
        raise ValueError(f"must be at least {_LEAST:g}")
    return value


Positive = Annotated[
    float, Field(strict=True, allow_inf_nan=False, gt=0, le=1e12), AfterValidator(_not_tiny)
]
Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Name = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f/]{1,200}$")]
"""Of a tensor: one line, and short enough to be shown."""

MAX_VALUES = 10_000
"""Values that a parameter may list."""

_DURATION = r"(\d+(?:\.\d+)?)([smh])"
_DURATION_RULE = "must be a number above 0 and s, m or h, such as 8h"
_LONGEST_SECONDS = 366 * 86_400.0


def duration_seconds(text: str) -> float:
    """Seconds of a duration such as "8h", "90m" or "30s". Raises ValueError for anything else."""
    match = re.fullmatch(_DURATION, text)
    if match is None or float(match[1]) == 0:
        raise ValueError(_DURATION_RULE)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if seconds > _LONGEST_SECONDS:
        raise ValueError(f"{_DURATION_RULE}, and at most a year")
    return seconds


def _seconds(value: object) -> object:
    """A text as a duration; a number is seconds already."""
    return duration_seconds(value) if isinstance(value, str) else value


Duration = Annotated[
    Positive,
    Field(le=_LONGEST_SECONDS),
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


def first_mistake(error: ValidationError) -> str:
    """Return the first mistake that pydantic has found, by its place, and how many more there are.

    The message is one line, however many mistakes a damaged file holds.
    """
    first, *more = error.errors(include_url=False, include_context=False, include_input=False)
    place = ".".join(map(str, first["loc"])) or "file"
    rule = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{place}: {rule}" + (f" (and {len(more)} more)" if more else "")


class Section(BaseModel):
    """A part of a space file: unknown keys are refused, values do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@cache
def known_keys() -> tuple[str, ...]:
    """Return the keys of all sections of a space file."""
    keys = (
        field.validation_alias.choices[0]
        if isinstance(field.validation_alias, AliasChoices)
        else field.alias or name
        for section in Section.__subclasses__()
        for name, field in section.model_fields.items()
    )
    return tuple(dict.fromkeys(map(str, keys)))


def folder_of(info: ValidationInfo) -> Path:
    """Where the space file lies; paths in it are relative to there."""
    return Path((info.context or {}).get("folder", "."))

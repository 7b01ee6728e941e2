"""What the sections of a space file share: their base, number types and mistakes."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    AfterValidator,
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from optimizer.files.request_files import SUFFIXES
from optimizer.files.untrusted import is_there

# Strict, so that neither "4" nor true is a number. Bounded, so that results are finite too.
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
"""Name of a tensor: one line, short enough for tables."""

ModelName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
"""Name of a model, which is that of its folder in a model repository."""

MAX_VALUES = 10_000
"""Most values of a parameter."""

_DURATION = r"(\d+(?:\.\d+)?)([smh])"
_DURATION_RULE = "must be a number above 0 and s, m or h, such as 8h"
_LONGEST_SECONDS = 366 * 86_400.0


def duration_seconds(text: str) -> float:
    """Return the seconds of a duration such as "8h", "90m" or "30s". Raises ValueError."""
    match = re.fullmatch(_DURATION, text)
    if match is None or float(match[1]) == 0:
        raise ValueError(_DURATION_RULE)
    seconds = float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]
    if seconds > _LONGEST_SECONDS:
        raise ValueError(f"{_DURATION_RULE}, and at most a year")
    return seconds


def _seconds(value: object) -> object:
    """Return the seconds of a text; a number is in seconds already."""
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
    """Return a mistake at a key below the section that is being validated."""
    context = {"key": key, "rule": rule, "value": repr(value)}
    return PydanticCustomError("space_rule", "{rule}", context)


def missing_file(path: Path) -> PydanticCustomError:
    """Return the mistake of a file that does not exist."""
    return PydanticCustomError("space_rule", "file must exist, looked at {at}", {"at": str(path)})


def require_file(path: Path) -> None:
    """Raise a mistake unless a file exists."""
    if not (is_there(path) and path.is_file()):
        raise missing_file(path)


def require_requests(path: Path) -> None:
    """Raise a mistake unless a path is a directory, or a file of one of the forms of requests."""
    if not is_there(path):
        raise missing_file(path)
    if not path.is_dir() and not (path.is_file() and path.suffix in SUFFIXES):
        raise wrong("", f"must be a directory or end with {', '.join(SUFFIXES)}", path.name)


def check_finite(values: object) -> None:
    """Raise ValueError for NaN and infinity, which JSON lacks."""
    try:
        json.dumps(values, allow_nan=False)
    except ValueError as error:
        raise ValueError("numbers must be finite") from error


def raise_all(section: type[BaseModel], mistakes: Sequence[PydanticCustomError]) -> None:
    """Report every mistake of a section at once; nothing without one."""
    if mistakes:
        details = [InitErrorDetails(type=each, input=None) for each in mistakes]
        raise ValidationError.from_exception_data(section.__name__, details)


_WITH_VALUE = {
    "value_error", "space_rule", "json_invalid", "extra_forbidden", "unexpected_keyword_argument"
}  # fmt: skip
"""Types of mistakes whose message has the value, or needs none."""


def first_mistake(error: ValidationError) -> str:
    """Return one line with the first mistake and its location, and the number of others."""
    first, *more = error.errors(include_url=False, include_context=False)
    location = ".".join(map(str, first["loc"])) or "file"
    rule = " ".join(first["msg"].removeprefix("Value error, ").split())
    if first["type"] not in _WITH_VALUE and isinstance(first["input"], int | float | str):
        rule += f", got {reprlib.repr(first['input'])}"
    return f"{location}: {rule}" + (f" (and {len(more)} more)" if more else "")


class Section(BaseModel):
    """A part of a space file; it refuses unknown keys and cannot be changed.

    Attributes:
        added_keys: keys that are not dumped where they have their defaults, since studies that were
            begun before these keys existed lack them.
    """

    # Deferred: most commands read no space file, and making all sections takes half a second.
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)
    added_keys: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_added_defaults(self, dump: SerializerFunctionWrapHandler) -> Any:
        content = dump(self)
        for key in self.added_keys:
            if getattr(self, key) == type(self).model_fields[key].default:
                # Of a section within itself, pydantic calls this twice.
                content.pop(key, None)
        return content


def _sections(base: type[Section]) -> Iterator[type[Section]]:
    """Yield the sections that derive from one, and those that derive from them."""
    for section in base.__subclasses__():
        yield section
        yield from _sections(section)


@cache
def accepted_keys() -> tuple[str, ...]:
    """Return the keys of all sections of a space file."""
    keys = (
        field.validation_alias.choices[0]
        if isinstance(field.validation_alias, AliasChoices)
        else field.alias or name
        for section in _sections(Section)
        for name, field in section.model_fields.items()
    )
    return tuple(dict.fromkeys(map(str, keys)))


def folder_of(info: ValidationInfo) -> Path:
    """Return the folder of the space file, to which its paths are relative."""
    return Path((info.context or {}).get("folder", "."))

"""Errors of pydantic as mistakes with key, rule, value and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.configuration.named_parameters import is_any_field, suggestion
from optimizer.errors import Mistake
from optimizer.space_file.section import accepted_keys


def mistake(error: Mapping[str, Any], document: Any) -> Mistake:
    """Return a pydantic error as a mistake with key, rule, value and line."""
    context = error.get("ctx") or {}
    given, below = _with_model(error["loc"], _parts(str(context.get("key", ""))))
    location = _existing(document, given, error["type"] == "missing")
    location = _existing(document, [*location, *below], absent_last=True)
    rule, value = error["msg"].removeprefix("Value error, "), context.get("value")
    if error["type"] == "extra_forbidden":
        # The key may be one of another section.
        unknown = str(error["loc"][-1])[:80]
        others = [key for key in accepted_keys() if key != unknown]
        rule = "unknown key" + suggestion(unknown, others)
    elif error["type"] == "missing":
        rule = "is required"
    elif value is None:
        rule = re.sub(r"^\w+ should ", "must ", rule)
        value = short(error["input"])
    key = ".".join(str(part) for part in location) or "file"
    return Mistake(key, rule, value, line_of(document, location))


def _parts(key: str) -> list[str]:
    """Return the keys that a dotted key consists of; a path in config.pbtxt is one key."""
    return [key] if is_any_field(key) else [part for part in key.split(".") if part]


def _with_model(
    location: Sequence[Any], below: Sequence[str]
) -> tuple[Sequence[Any], Sequence[str]]:
    """Return a location, and the keys below it, with "MODEL.PARAMETER" as one key again."""
    if "of_models" not in location:
        return location, below
    at = location.index("of_models")
    model, *rest = (part for part in location[at + 1 :] if part != "fields_of_config")
    if rest:
        return [*location[:at], f"{model}.{rest[0]}", *rest[1:]], below
    return location[:at], [f"{model}.{below[0]}", *below[1:]] if below else []


def _existing(document: Any, location: Sequence[Any], absent_last: bool) -> list[Any]:
    """Return a location as keys of the document, without pydantic's parts for union members.

    Args:
        absent_last: whether the last part is a key that the document lacks.
    """
    keys: list[Any] = []
    node = document
    for n, part in enumerate(location):
        # A key that was joined to others by dots is text, though it may be a number or an index.
        at = int(part) if isinstance(part, str) and part.isdecimal() else part
        if isinstance(node, Mapping) and (part in node or at in node):
            at = part if part in node else at
        elif not (isinstance(node, list) and isinstance(at, int) and at < len(node)):
            if absent_last and n == len(location) - 1 and isinstance(node, Mapping):
                keys.append(part)
            continue
        node = node[at]
        keys.append(at)
    return keys


def one_for_each_value(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Join the mistakes at the same value, which is one for each member of a union."""
    joined: dict[tuple[str, str | None], Mistake] = {}
    for mistake in mistakes:
        other = joined.get((mistake.key, mistake.value))
        rule = f"{other.rule}, or {mistake.rule}" if other is not None else mistake.rule
        joined[mistake.key, mistake.value] = replace(mistake, rule=rule)
    return list(joined.values())


def line_of(document: Any, location: Sequence[Any]) -> int | None:
    """Return the 1-based line of the deepest part of a location that the file has."""
    line, node = None, document
    for part in location:
        try:
            is_map = isinstance(node, Mapping)
            position = node.lc.key(part) if is_map else node.lc.item(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break  # an empty map has no positions
    return line


def short(value: object) -> str:
    """Return a value on one line of at most 80 characters."""
    text = repr(value if isinstance(value, str | int | float | bool | None) else _plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: object) -> object:
    """Return ruamel's containers as built-in ones, so that messages show what was written."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value

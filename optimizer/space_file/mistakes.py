"""What pydantic says is wrong with a document, as mistakes with key, rule, value and line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from optimizer.configuration.parameters import suggestion
from optimizer.errors import Mistake
from optimizer.space_file.section import known_keys


def mistake(error: Mapping[str, Any], document: Any) -> Mistake:
    """A pydantic error as a mistake with key, rule, value and line."""
    context = error.get("ctx") or {}
    below = [part for part in str(context.get("key", "")).split(".") if part]
    location = _existing(document, error["loc"], error["type"] == "missing")
    location = _existing(document, [*location, *below], absent_last=True)
    rule, value = error["msg"].removeprefix("Value error, "), context.get("value")
    if error["type"] == "extra_forbidden":
        rule = "unknown key" + suggestion(str(error["loc"][-1])[:80], known_keys())
    elif error["type"] == "missing":
        rule = "is required"
    elif value is None:
        rule = re.sub(r"^\w+ should ", "must ", rule)
        value = short(error["input"])
    key = ".".join(str(part) for part in location) or "file"
    return Mistake(key, rule, value, line_of(document, location))


def _existing(document: Any, location: Sequence[Any], absent_last: bool) -> list[Any]:
    """The location as keys of the document: pydantic adds parts for union members, dropped here.

    Args:
        absent_last: whether the last part is a key that is not there.
    """
    found: list[Any] = []
    node = document
    for n, part in enumerate(location):
        # Text where a key or an index was joined to others by dots, or is a number in YAML.
        at = int(part) if isinstance(part, str) and part.isdecimal() else part
        if isinstance(node, Mapping) and (part in node or at in node):
            at = part if part in node else at
        elif not (isinstance(node, list) and isinstance(at, int) and at < len(node)):
            if absent_last and n == len(location) - 1 and isinstance(node, Mapping):
                found.append(part)
            continue
        node = node[at]
        found.append(at)
    return found


def one_for_each_value(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Join what the members of a union say of the same value: any of them would do."""
    joined: dict[tuple[str, str | None], Mistake] = {}
    for mistake in mistakes:
        known = joined.get((mistake.key, mistake.value))
        rule = f"{known.rule}, or {mistake.rule}" if known is not None else mistake.rule
        joined[mistake.key, mistake.value] = replace(mistake, rule=rule)
    return list(joined.values())


def line_of(document: Any, location: Sequence[Any]) -> int | None:
    """1-based line of the deepest part of the location that stands in the file."""
    line, node = None, document
    for part in location:
        try:
            is_map = isinstance(node, Mapping)
            position = node.lc.key(part) if is_map else node.lc.item(part)
            line, node = position[0] + 1, node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break  # an empty map has no positions at all
    return line


def short(value: object) -> str:
    """Return a value as it was written, on one line of at most 80 characters."""
    text = repr(value if isinstance(value, str | int | float | bool | None) else _plain(value))
    return text if len(text) <= 80 else text[:77] + "..."


def _plain(value: object) -> object:
    """Ruamel's containers as built-in ones, so that messages show what was written."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return value

"""The reference of the space file, generated from its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from markdown_table import table

from optimizer.files.shipped import shipped
from optimizer.space_file.schema import json_schema


def space_file() -> str:
    """Return a section for every part of a space file, and the file that `init` writes."""
    schema = json_schema()
    parts = [_section("The whole file", schema, schema, "top")]
    for name, section in _sections_in_order(schema):
        parts.append(_section(_title(name), section, schema, _anchor(name)))
    template = shipped("space_template.yaml").read_text(encoding="utf-8")
    parts += [
        "## The file that `init` writes",
        "`python -m optimizer init` writes this file, which has a comment at every key:",
        f"```yaml\n{template.rstrip()}\n```",
    ]
    return "\n\n".join(parts)


def _sections_in_order(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the schema's sections breadth first, in the order of the references to them."""
    queue, visited = _referred(schema["properties"]), set[str]()
    while queue:
        name = queue.pop(0)
        if name in visited or "properties" not in schema["$defs"][name]:
            continue
        visited.add(name)
        yield name, schema["$defs"][name]
        queue += _referred(schema["$defs"][name])


def _referred(part: object) -> list[str]:
    return re.findall(r"#/\$defs/(\w+)", json.dumps(part))


def _title(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Section"))


def _anchor(name: str) -> str:
    return _title(name).lower().replace(" ", "-")


def _section(title: str, section: Mapping[str, Any], schema: Mapping[str, Any], anchor: str) -> str:
    required = section.get("required", [])
    rows = []
    for key, value in section["properties"].items():
        default = "" if key in required else _default(value)
        rows.append((f"`{key}`", value.get("description", ""), _type(value, schema), default))
    return "\n\n".join(
        [
            f"## {title} {{ #{anchor} }}",
            section.get("description", ""),
            table(("key", "meaning", "type", "default"), rows),
        ]
    )


def _default(value: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict):
        return "see there"
    if _is_duration(value) and isinstance(default, float):
        return f"`{default:g}s`"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{json.dumps(default)}`"


def _is_duration(value: Mapping[str, Any]) -> bool:
    return any("smh" in each.get("pattern", "") for each in value.get("anyOf", []))


def _type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "$ref" in value:
        return _reference(value["$ref"].rsplit("/", 1)[1], schema)
    if "enum" in value or "const" in value:
        return ", ".join(f"`{each}`" for each in value.get("enum") or [value["const"]])
    if _is_duration(value):
        return "duration"
    several = value.get("anyOf") or value.get("oneOf")
    if several:
        kinds = [_type(each, schema) for each in several if each.get("type") != "null"]
        *single, last = dict.fromkeys(kinds)
        if single and last == f"list of ({', or '.join(single)})":
            last = "a list of these"
        return ", or ".join([*single, last])
    return _plain_type(value, schema)


def _reference(name: str, schema: Mapping[str, Any]) -> str:
    if "properties" not in schema["$defs"][name]:
        return "any value"
    return f"[{_title(name)}](#{_anchor(name)})"


def _plain_type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    kind = value.get("type")
    if kind == "array":
        items = value.get("items")
        return f"list of ({_type(items, schema)})" if items else "list"
    if kind == "object":
        of = value.get("additionalProperties") or next(
            iter(value.get("patternProperties", {}).values()), None
        )
        return f"by name: {_type(of, schema)}" if isinstance(of, dict) else "by name"
    words = {"string": "text", "boolean": "`true`, `false`", "integer": "whole number"}
    return f"{words.get(str(kind), str(kind))}{_bounds(value)}" if kind else "any value"


def _bounds(value: Mapping[str, Any]) -> str:
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to"}
    # Maxima from a million on only keep sums from overflowing.
    shown = {key: value[key] for key in words if key in value and value[key] < 1e6}
    return "".join(f" {words[key]} {bound:g}" for key, bound in shown.items())

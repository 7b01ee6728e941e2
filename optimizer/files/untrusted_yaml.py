"""A bounded reader of YAML that a stranger may have written.

A document is read with its lines (ruamel's round-trip loader), so that mistakes can be placed. It
is bounded in bytes, values and depth before anything walks through it: aliases count as often as
they are used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from optimizer.files.untrusted import MAX_DEPTH, MAX_INTEGER, UnreadableError

MAX_YAML_BYTES = 256 * 2**10
MAX_VALUES = 20_000
_CORE_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp")
}


class UnreadableYamlError(UnreadableError):
    """YAML that cannot be used; `line` is where, None where that is everywhere."""

    def __init__(self, rule: str, line: int | None = None) -> None:
        super().__init__(rule)
        self.line = line


class _Constructor(RoundTripConstructor):
    """Round-trip values, less tags of programs; a scalar that is no number or date has its line."""

    def construct_object(self, node: Node, deep: bool = False) -> Any:
        tag = str(node.tag)
        if tag not in _CORE_TAGS:
            raise ConstructorError(None, None, f"tags such as {tag} are not used", node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (YAMLError, RecursionError):
            raise
        except Exception as error:  # ruamel trusts what looks like a number or a date
            kind = tag.rpartition(":")[2]
            text = str(node.value)
            shown = text if len(text) <= 40 else f"{text[:37]}..."
            raise ConstructorError(
                None, None, f"{shown!r} cannot be read as {kind}", node.start_mark
            ) from error


def parse_yaml(text: str) -> Any:
    """Return what a YAML document says, with the lines of its parts.

    Raises:
        UnreadableYamlError: with the rule that it breaks, and the line where there is one.
    """
    _check_text(text)
    yaml = YAML(typ="rt")
    yaml.Constructor = _Constructor
    try:
        document = yaml.load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark
        rule = " ".join(str(error.problem).split())
        raise UnreadableYamlError(rule, mark.line + 1 if mark is not None else None) from error
    except YAMLError as error:
        raise UnreadableYamlError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise _too_deep() from error
    _check_bounds(document)
    return document


def _check_text(text: str) -> None:
    """Refuse what would keep the parser busy: it reads some 5,000 values a second."""
    if len(text) > MAX_YAML_BYTES:
        raise UnreadableYamlError(f"must be at most {MAX_YAML_BYTES // 2**10} KiB")
    if text.count(",") + text.count("\n") + text.count(": ") > 2 * MAX_VALUES:
        raise _too_many()
    depth = 0
    for bracket in re.findall(r"[][{}]", text):
        depth += 1 if bracket in "[{" else -1
        if depth > 2 * MAX_DEPTH:
            raise _too_deep()


def _check_bounds(document: object) -> None:
    level, values = [document], 0
    for _ in range(MAX_DEPTH + 1):
        values += len(level)
        below: list[object] = []
        for whole in level:
            if isinstance(whole, Mapping | list):
                below += [*whole, *whole.values()] if isinstance(whole, Mapping) else whole
            elif isinstance(whole, int) and abs(whole) > MAX_INTEGER:
                raise UnreadableYamlError("whole numbers must fit in 64 bits")
            if values + len(below) > MAX_VALUES:
                raise _too_many()
        if not below:
            return
        level = below
    raise _too_deep()


def _too_many() -> UnreadableYamlError:
    return UnreadableYamlError(
        f"must have at most {MAX_VALUES:,} values; an alias counts as what it repeats"
    )


def _too_deep() -> UnreadableYamlError:
    return UnreadableYamlError(f"must be nested at most {MAX_DEPTH} deep")

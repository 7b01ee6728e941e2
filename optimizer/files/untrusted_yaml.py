"""A bounded reader of untrusted YAML.

ruamel's round-trip loader keeps line numbers for messages. Bytes, values and depth are limited
before anything walks through the document; an alias counts each time that it is used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, RoundTripConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import Node

from optimizer.files.untrusted import MAX_DEPTH, UnreadableError, fits_in_64_bits

MAX_YAML_BYTES = 256 * 2**10
MAX_VALUES = 20_000
_CORE_TAGS = {
    f"tag:yaml.org,2002:{kind}"
    for kind in ("bool", "float", "int", "map", "merge", "null", "seq", "str", "timestamp")
}


class UnreadableYamlError(UnreadableError):
    """YAML that cannot be used; `line` is None where the whole document is affected."""

    def __init__(self, rule: str, line: int | None = None) -> None:
        super().__init__(rule)
        self.line = line


class _Constructor(RoundTripConstructor):
    """Construct round-trip values of core tags only, and report the line of an invalid scalar."""

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
    """Return the values of a YAML document, which know their lines.

    Raises:
        UnreadableYamlError: with the rule that it breaks, and the line if known.
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
    """Refuse a document that would take long: the parser reads about 5,000 values a second."""
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
        for value in level:
            if isinstance(value, Mapping | list):
                below += [*value, *value.values()] if isinstance(value, Mapping) else value
            elif isinstance(value, int) and not fits_in_64_bits(value):
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

"""YAML as text, read alike by parsers of YAML 1.1 (Kubernetes, Prometheus) and of 1.2."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

_READ_OTHERWISE = re.compile(r"[-+.\d].*|y|n|yes|no|on|off|true|false|null|~", re.IGNORECASE)
"""Strings that one of the two versions takes for something else."""


def yaml_text(comment: str, *documents: Mapping[str, Any]) -> str:
    """Documents of mappings, sequences and scalars, the first below a comment."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    plain = [_plain(document) for document in documents]
    plain[0].yaml_set_start_comment(comment)
    text = io.StringIO()
    yaml.dump_all(plain, text)
    return text.getvalue()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return CommentedMap((_plain(key), _plain(item)) for key, item in value.items())
    if isinstance(value, str):
        if "\n" in value:
            return LiteralScalarString(value)
        return DoubleQuotedScalarString(value) if _READ_OTHERWISE.fullmatch(value) else value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return value

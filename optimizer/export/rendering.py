"""Templates of exported files, and YAML that parsers of YAML 1.1 and of 1.2 read alike.

Every value that a template of a YAML or JSON file prints is quoted for that format by the
environment itself, so that no value can break out of its field: write `name: {{ value }}`, and
`{{ prefix ~ "-" ~ value }}` for one scalar that is made of two.
"""

from __future__ import annotations

import io
import json
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import PurePosixPath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

_SUFFIX = ".jinja"

_AMBIGUOUS = re.compile(r"[-+.\d].*|y|n|yes|no|on|off|true|false|null|~", re.IGNORECASE)
"""Strings that YAML 1.1 (Kubernetes, Prometheus) or 1.2 reads as something else."""


class Verbatim(str):
    """Text that a template prints as it is."""

    __slots__ = ()


def render_folder(folder: str, values: Mapping[str, Any]) -> dict[str, str]:
    """Fill in all templates of a folder of `templates/`.

    Returns:
        Texts by the path below the folder, without those that are empty.
    """
    names = _environment("").list_templates(filter_func=lambda name: name.startswith(f"{folder}/"))
    texts = {
        name.removeprefix(f"{folder}/").removesuffix(_SUFFIX): render(name, values)
        for name in names
    }
    return {path: text for path, text in texts.items() if text}


def render(template: str, values: Mapping[str, Any]) -> str:
    """Fill in one template, such as "compose/compose.yaml.jinja"."""
    suffix = PurePosixPath(template.removesuffix(_SUFFIX)).suffix
    return _environment(suffix).get_template(template).render(values)


@cache
def _environment(suffix: str) -> Environment:
    quote = _QUOTE.get(suffix, str)
    environment = Environment(  # noqa: S701 - the values are quoted for YAML and JSON, not for HTML
        loader=PackageLoader("optimizer.export"),
        finalize=lambda value: value if isinstance(value, Verbatim) else quote(value),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["comment"] = _comment
    environment.filters["verbatim"] = Verbatim
    environment.filters["shell_quote"] = shlex.quote
    environment.filters["json"] = lambda value: Verbatim(json.dumps(value, ensure_ascii=False))
    return environment


def _comment(text: str) -> Verbatim:
    return Verbatim("\n".join(f"# {line}" for line in text.splitlines()))


def _yaml_scalar(value: object) -> str:
    return _dumped([_plain(value)]).removeprefix("- ").rstrip("\n")


_QUOTE: Mapping[str, Callable[[object], str]] = {
    ".json": json.dumps,
    ".yaml": _yaml_scalar,
    ".yml": _yaml_scalar,
}
"""Quoting of values, by the suffix of the exported file."""


def yaml_text(comment: str, document: Mapping[str, Any]) -> str:
    """Write a document of mappings, sequences and scalars below a comment."""
    return f"{_comment(comment)}\n{_dumped(_plain(document))}"


def _dumped(plain: object) -> str:
    yaml = YAML()
    yaml.width = 2**30
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump(plain, text)
    return text.getvalue().removeprefix("  ")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return CommentedMap((_plain(key), _plain(item)) for key, item in value.items())
    if isinstance(value, str):
        quoted = _AMBIGUOUS.fullmatch(value) or len(value.splitlines()) > 1
        return DoubleQuotedScalarString(value) if quoted else value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return value

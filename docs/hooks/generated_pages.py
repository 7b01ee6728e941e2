"""Pages that are made when the site is built: the reference, the notebook, what has been run.

The reference comes from the command line itself, the schema of space files and the dataclasses of
the records; the notebook and what has been run on real hardware from the files that hold them.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from optimizer import cost, errors, estimates, measurement, serving_config, trial_record
from optimizer.cli import commands, main
from optimizer.shipped import shipped
from optimizer.space_schema import json_schema

ROOT = Path(__file__).parents[2]
RUN_ON_HARDWARE = "What has been run on real hardware, and what has not"
REAL_RUN = "A real run"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """What mkdocs calls when it has found the pages in the folder."""
    for path, text in pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """Markdown by the page's path."""
    return {
        "hardware.md": section_of_readme(RUN_ON_HARDWARE),
        "reference/commands.md": command_line(),
        "reference/exit-codes.md": exit_codes(),
        "reference/records.md": records(),
        "reference/space-file.md": space_file(),
        "tutorial/notebook.md": notebook(ROOT / "examples" / "quickstart.ipynb"),
        "tutorial/real-run.md": section_of_readme(REAL_RUN, "../"),
    }


def section_of_readme(title: str, top: str = "") -> str:
    """A section of the README as a page; `top` leads from the page to the site's top."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise LookupError(f"README.md: needs a section {title!r}")
    return f"# {title}\n{found[1]}".replace("](docs/", f"]({top}")


# Commands


def command_line() -> str:
    """Every command with its options, as the command line itself knows them."""
    parts = [
        "# Commands",
        (
            "Every command is `python -m optimizer COMMAND`, and `triton-cost-optimizer COMMAND` where "
            "the package is installed. How a command ends is said by its [exit code](exit-codes.md)."
        ),
    ]
    for path, command in _every_command(commands, ()):
        parts += _command(path, command)
    return "\n\n".join(parts) + "\n"


def _every_command(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    for name, command in sorted(group.commands.items()):
        if command.hidden:
            continue
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from _every_command(command, (*path, name))


def _command(path: tuple[str, ...], command: click.Command) -> Iterator[str]:
    name = " ".join(path)
    context = click.Context(command, info_name=f"python -m optimizer {name}")
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"## {name}"
    yield f"```text\npython -m optimizer {name} {usage}\n```"
    yield inspect.cleandoc(command.help or "")
    rows = [record for each in command.params if (record := each.get_help_record(context))]
    yield table(("option", "meaning"), [(f"`{option}`", text) for option, text in rows])


# Exit codes


def exit_codes() -> str:
    """What the exit codes mean, and which error has which."""
    said = re.sub(r"\s+", " ", inspect.getdoc(main) or "").partition("code. ")[2].rstrip(".")
    rows = [tuple(each.strip().split(" ", 1)) for each in said.split(";")]
    codes = [each for each in _with_more_words(rows)]
    kinds = [
        (f"`{kind.__name__}`", str(kind.exit_code), (inspect.getdoc(kind) or "").split("\n\n")[0])
        for kind in _tree(errors.OptimizerError)
    ]
    return "\n\n".join(
        [
            "# Exit codes and errors",
            table(("code", "meaning"), codes),
            (
                "An error names the key, the rule and the value, and is one message without a "
                "traceback. From Python it is raised as one of `optimizer.errors`:"
            ),
            table(("error", "code", "meaning"), kinds),
            "The last ones are of one configuration: its trial fails with the message, and the run goes on.\n",
        ]
    )


def _with_more_words(rows: list[tuple[str, ...]]) -> Iterator[tuple[str, str]]:
    """A part that begins with no number belongs to the code before it."""
    found: list[tuple[str, str]] = []
    for row in rows:
        if row[0].isdigit():
            found.append((row[0], row[1]))
        else:
            code, text = found.pop()
            found.append((code, f"{text}; {' '.join(row)}"))
    yield from found


def _tree(kind: type[errors.OptimizerError]) -> Iterator[type[errors.OptimizerError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _tree(each)


# The space file


def space_file() -> str:
    """Every key of a space file, and the file that `init` writes."""
    schema = json_schema()
    parts = [
        "# The space file",
        (
            "One YAML file says what is served, what is asked of it and what may be tried. Every "
            "mistake in it is reported at once, with its key and line. Durations are seconds, or a "
            "number with s, m or h, such as `30m`. Keys without a default must be given."
        ),
        _section("The whole file", schema, schema, "top"),
    ]
    for name, section in _sections_in_order(schema):
        parts.append(_section(_title(name), section, schema, _anchor(name)))
    template = shipped("space_template.yaml").read_text(encoding="utf-8")
    parts += [
        "## The file that `init` writes",
        "With a comment at every key:",
        f"```yaml\n{template.rstrip()}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _sections_in_order(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Those that the file refers to, the nearest first."""
    waiting, seen = _referred(schema["properties"]), set[str]()
    while waiting:
        name = waiting.pop(0)
        if name in seen or "properties" not in schema["$defs"][name]:
            continue
        seen.add(name)
        yield name, schema["$defs"][name]
        waiting += _referred(schema["$defs"][name])


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
        default = "" if key in required else _default(value, schema)
        rows.append((f"`{key}`", _type(value, schema), default, value.get("description", "")))
    return "\n\n".join(
        [
            f"## {title} {{ #{anchor} }}",
            section.get("description", ""),
            table(("key", "type", "default", "meaning"), rows),
        ]
    )


def _default(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    default = value.get("default")
    if default is None:
        return "none"
    if isinstance(default, dict):
        return "its own defaults"
    if _is_duration(value) and isinstance(default, float):
        return f"`{default:g}s`"
    if isinstance(default, float) and default.is_integer():
        default = int(default)
    return f"`{json.dumps(default)}`"


def _is_duration(value: Mapping[str, Any]) -> bool:
    return any("smh" in each.get("pattern", "") for each in value.get("anyOf", []))


def _type(value: Mapping[str, Any], schema: Mapping[str, Any]) -> str:
    if "$ref" in value:
        name = value["$ref"].rsplit("/", 1)[1]
        if "properties" not in schema["$defs"][name]:
            return "any value"
        return f"[{_title(name)}](#{_anchor(name)})"
    if "enum" in value:
        return ", ".join(f"`{each}`" for each in value["enum"])
    if "const" in value:
        return f"`{value['const']}`"
    if _is_duration(value):
        return "duration"
    several = value.get("anyOf") or value.get("oneOf")
    if several:
        kinds = [_type(each, schema) for each in several if each.get("type") != "null"]
        return ", or ".join(dict.fromkeys(kinds))
    return _plain_type(value, schema)


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
    return "".join(f" {word} {value[key]:g}" for key, word in words.items() if key in value)


# Records

_KEPT: tuple[type, ...] = (
    trial_record.TrialRecord,
    trial_record.Seconds,
    trial_record.Failure,
    cost.Score,
    measurement.Measurement,
    measurement.LoadLevel,
    measurement.StreamLevel,
    estimates.Percentile,
    measurement.ServerSplit,
    measurement.BatchPoint,
    measurement.ClientUse,
    measurement.MachineUse,
    measurement.GpuUse,
    measurement.Slice,
    measurement.FurtherLimit,
    serving_config.ServingConfig,
    serving_config.ModelServing,
    serving_config.ArtifactSpec,
    serving_config.Batching,
    serving_config.InstanceGroup,
    serving_config.ServerOptions,
)


def records() -> str:
    """The fields of a trial's record, as `trials/` keeps them."""
    parts = [
        "# Records",
        (
            "A trial is kept as one JSON file, `results/STUDY/trials/NUMBER.json`, and so are the runs "
            "in `calibration/`, `confirmations/` and `references/`. Its fields, by the names that "
            "they have in the file; units are in the names."
        ),
    ]
    for kind in _KEPT:
        parts += [f"## {kind.__name__}", _first_paragraph(kind), _fields(kind)]
    return "\n\n".join(parts) + "\n"


def _first_paragraph(kind: type) -> str:
    return (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")


def _fields(kind: type) -> str:
    meanings = described(kind)
    rows = []
    for each in dataclasses.fields(kind):
        shown = each.type if isinstance(each.type, str) else each.type.__name__
        rows.append((f"`{each.name}`", f"`{shown}`", meanings.get(each.name, "")))
    return table(("field", "type", "meaning"), rows)


def described(kind: type) -> dict[str, str]:
    """What a dataclass's docstring says of its attributes."""
    _, _, text = (inspect.getdoc(kind) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", text.split("\n\n")[0]):
        names, _, meaning = entry.strip().partition(": ")
        for name in names.split(", "):
            found[name] = re.sub(r"\s+", " ", meaning)
    return found


# The notebook


def notebook(path: Path) -> str:
    """A notebook's cells as one page."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    note = f"This is `examples/{path.name}`, without what a run shows."
    return "\n\n".join([parts[0], note, *parts[1:]]) + "\n"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Rows as Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    """In one line; only code may hold a bar, which would end the cell elsewhere."""
    plain = re.sub(r"\s+", " ", text)
    return plain if "`" in plain else plain.replace("|", "&#124;").replace("<", "&lt;")

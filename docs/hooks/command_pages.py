"""The reference of commands and errors, generated from the command line and `errors`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from markdown_table import table

from optimizer import errors
from optimizer.cli import GROUPS, commands


def command_line() -> str:
    """Return a table of the commands, and a section for each with its usage, help and options."""
    rows = [
        (title, f"[`{name}`](#{name})", text)
        for title, group in GROUPS.items()
        for name, text in group.items()
    ]
    parts = [table(("group", "command", "purpose"), rows)]
    for path, command in _every_command(commands, ()):
        parts += _command(path, command)
    return "\n\n".join(parts)


def _every_command(
    group: click.Group, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
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
    records = [each.get_help_record(context) for each in command.params]
    # Arguments have no help of their own: the command's help describes them.
    rows = [_row(*record) for record in records if record and record[1]]
    yield table(("option", "meaning"), rows)


_BOUNDS = re.compile(r"(; )?[\d.]+<=?x<=([\d.]+)")


def _row(option: str, meaning: str) -> tuple[str, str]:
    """Return an option and its meaning, without bounds that only keep numbers from overflowing."""

    def shown(match: re.Match[str]) -> str:
        return match[0] if float(match[2]) < 1e6 else ""

    meaning = _BOUNDS.sub(shown, meaning).replace("[]", "")
    return f"`{option.replace(' RANGE', '')}`", meaning


def errors_table() -> str:
    """Return a table of the exceptions with their exit codes."""
    kinds = [
        (f"`{kind.__name__}`", str(kind.exit_code), (inspect.getdoc(kind) or "").split("\n\n")[0])
        for kind in _tree(errors.OptimizerError)
    ]
    return "\n\n".join(
        [
            table(("error", "code", "meaning"), kinds),
            (
                "The errors at the end of the table concern one configuration: its trial fails "
                "with the message, and the run continues."
            ),
        ]
    )


def _tree(kind: type[errors.OptimizerError]) -> Iterator[type[errors.OptimizerError]]:
    yield kind
    for each in kind.__subclasses__():
        if each.__module__ == errors.__name__:
            yield from _tree(each)

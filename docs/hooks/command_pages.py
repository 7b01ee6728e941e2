"""The pages of the commands and of their exit codes, made from the command line itself."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click
from markdown_table import table

from optimizer import errors
from optimizer.cli import commands, main


def command_line() -> str:
    """Every command with its options, as the command line itself knows them."""
    parts = [
        "# Commands",
        (
            "Every command is `python -m optimizer COMMAND`, and `triton-cost-optimizer COMMAND` "
            "where the package is installed. How a command ends is said by its "
            "[exit code](exit-codes.md)."
        ),
    ]
    for path, command in _every_command(commands, ()):
        parts += _command(path, command)
    return "\n\n".join(parts) + "\n"


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
    # Arguments have no text of their own: the command's says what they are.
    rows = [(f"`{record[0]}`", record[1]) for record in records if record and record[1]]
    yield table(("option", "meaning"), rows)


_MEASURING = (
    (
        "`run`, `recommend --search`",
        "no configuration met the limits",
        "most configurations could not be measured, or five failed in a row and the baseline too",
    ),
    (
        "`measure`, `--curve`, `--with perf_analyzer`",
        "no load met the limit, or the compared one did not",
        "the server or the model died or answered nothing, or the load generator fell behind",
    ),
    (
        "`measure --rate`",
        "the limit was missed, requests failed, or the backlog grew",
        "the same",
    ),
    (
        "`measure --users`",
        "no part of the load was within the limit or the file's thresholds, or requests failed",
        "the same",
    ),
    (
        "`baseline`, `record`",
        "no configuration met the limits",
        "most configurations could not be measured, or all failed",
    ),
    (
        "`verify`",
        "a file, the configuration or an output is another, or the limit is missed",
        "the server died or did not start, or the load generator fell behind",
    ),
    ("`replay`, `simulate`", "nothing meets the limits, as recorded or predicted", "-"),
)
"""What ends a command that measures or predicts with 1 and with 4."""


def exit_codes() -> str:
    """What the exit codes mean, and which error has which."""
    said = re.sub(r"\s+", " ", inspect.getdoc(main) or "").partition("code. ")[2].rstrip(".")
    rows = [tuple(each.strip().split(" ", 1)) for each in said.split(";")]
    codes = list(_with_more_words(rows))
    kinds = [
        (f"`{kind.__name__}`", str(kind.exit_code), (inspect.getdoc(kind) or "").split("\n\n")[0])
        for kind in _tree(errors.OptimizerError)
    ]
    return "\n\n".join(
        [
            "# Exit codes and errors",
            table(("code", "meaning"), codes),
            (
                "A single request that fails misses the limit. What could not be measured says "
                "nothing of a configuration: it is neither within the limit nor over it."
            ),
            table(("command", "ends with 1 where", "ends with 4 where"), _MEASURING),
            (
                "An error names the key, the rule and the value, or what to install, in one "
                "message without a traceback. From Python it is one of `optimizer.errors`:"
            ),
            table(("error", "code", "meaning"), kinds),
            (
                "The last ones are of one configuration: its trial fails with the message, and the "
                "run goes on.\n"
            ),
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

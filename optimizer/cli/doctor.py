"""`doctor`: check what this machine can run and what to install."""

from __future__ import annotations

from pathlib import Path
from textwrap import wrap

import click
from rich.console import Console
from rich.text import Text

from optimizer.cli.options import cache_option, results_option
from optimizer.cli.output import OutputConsole
from optimizer.commands.doctor import examine
from optimizer.commands.doctor.checks import Examination, State
from optimizer.commands.run_context import artifact_cache
from optimizer.errors import RequirementError

_COLOURS: dict[State, str] = {"ok": "green", "missing": "red", "unknown": "yellow"}
_STATE_COLUMN, _DETAIL_COLUMN, _SHORTEST = 26, 35, 20
_CAN_RUN: dict[State, str] = {"ok": "yes", "missing": "no", "unknown": "unknown"}


@click.command()
@results_option
@cache_option
def doctor(results: Path, cache: str | None) -> int:
    """Check what this machine can run and what to install.

    Nothing is changed, downloaded or started.
    """
    examination = examine(artifact_cache(cache).root, results.absolute())
    show_examination(OutputConsole(), examination)
    return 0 if examination.can_serve else RequirementError.exit_code


def show_examination(console: Console, examination: Examination) -> None:
    """Print the results, what can run and, on whole lines to be copied, what to do."""
    for area in examination.areas:
        _title(console, area.name)
        for part in area.results:
            _row(console, part.part, part.state, part.state, part.detail)
        console.print()
    _title(console, "What can run")
    for ability in examination.abilities:
        _row(console, ability.server, _CAN_RUN[ability.state], ability.state, ability.how)
    if examination.remedies:
        console.print()
        _title(console, "Remedies")
    for remedy, parts in examination.remedies.items():
        _line(console, Text(f"  {', '.join(parts)}:"))
        _line(console, Text(f"    {remedy}"))


def _title(console: Console, title: str) -> None:
    _line(console, Text(title, style="bold"))


def _row(console: Console, part: str, word: str, state: State, detail: str) -> None:
    """Print one part; a detail that is longer than the line continues below itself."""
    width = max(_SHORTEST, console.width - _DETAIL_COLUMN)
    first, *more = wrap(detail, width, break_long_words=False, break_on_hyphens=False) or [""]
    line = Text(f"  {part}".ljust(_STATE_COLUMN - 1) + " ")
    line.append(word, _COLOURS[state])
    line.append(" " * max(1, _DETAIL_COLUMN - line.cell_len) + first)
    _line(console, line)
    for rest in more:
        _line(console, Text(" " * _DETAIL_COLUMN + rest))


def _line(console: Console, line: Text) -> None:
    # Paths and commands are never broken, so that they can be copied.
    console.print(line, soft_wrap=True)

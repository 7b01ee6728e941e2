"""Tables and sentences on a terminal. A table that is too wide for it is laid out anew.

No word is ever broken: columns of words wrap between words; where that is not enough, a table of
few rows is turned on its side, and one of many is split into several beside its first column.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from optimizer.report.table import Part, Table

_FEW_ROWS = 6
_BETWEEN_COLUMNS = 2
_LONGEST_WORD = 40
"""Longer ones, such as paths, are folded."""

_STYLES: Mapping[str, str | None] = {
    "plain": None,
    "good": "green",
    "warning": "yellow",
    "note": "dim",
}


def print_sentence(console: Console, text: str, style: str | None = None) -> None:
    """Print a sentence as it is, wrapped between words on a terminal."""
    wrapped = not console.is_terminal
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=wrapped)


def print_path(console: Console, what: str, path: Path | str) -> None:
    """Print a path on one line, so that it can be copied."""
    print_line(console, f"{what}: {path}")


def print_line(console: Console, text: str) -> None:
    """Print text that only the terminal wraps, so that it can be copied."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def print_parts(console: Console, parts: Iterable[Part]) -> None:
    """Print tables and sentences in their order."""
    for part in parts:
        if isinstance(part, Table):
            print_table(console, part)
        else:
            print_sentence(console, part.text, _STYLES[part.tone])


def print_table(console: Console, table: Table) -> None:
    """Print a table and its notes, and an empty line after them."""
    console.print(TerminalTable(replace(table, notes=())))
    for note in table.notes:
        print_sentence(console, note, "dim")
    console.print()


class TerminalTable:
    """A table as rich draws it, as wide as there is room."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for number, part in enumerate(_fitted(self._table, options.max_width)):
            if number:
                yield Text()
            yield _drawn(part, options.max_width)
        for note in self._table.notes:
            yield Text(note, style="dim")


def _fitted(table: Table, width: int) -> Iterator[Table]:
    if _widths(table, width) is not None:
        yield table
    elif 0 < len(table.rows) <= _FEW_ROWS and len(table.columns) > 2:
        yield from _split(table.transposed, width)
    else:
        yield from _split(table, width)


def _split(table: Table, width: int) -> Iterator[Table]:
    """Split the columns into tables that fit, each with the first column."""
    group = [0]
    for column in range(1, len(table.columns)):
        if len(group) > 1 and _widths(_part(table, [*group, column]), width) is None:
            yield _part(table, group)
            group = [0]
        group.append(column)
    yield _part(table, group)


def _part(table: Table, group: Sequence[int]) -> Table:
    columns = tuple(table.columns[n] for n in group)
    rows = tuple(tuple(row[n] for n in group) for row in table.rows)
    return replace(table, columns=columns, rows=rows)


def _widths(table: Table, width: int) -> list[int] | None:
    """Return the widths of the columns; None where words would have to be broken."""
    least, most = [], []
    for number, name in enumerate(table.columns):
        cells = [row[number] for row in table.rows]
        whole = max(map(cell_len, cells), default=0)
        words = number == 0 or name in table.texts
        shortest = min(whole, _longest_word(cells)) if words else whole
        least.append(max(shortest, _longest_word([name])))
        most.append(max(whole, cell_len(name)))
    room = width - _BETWEEN_COLUMNS * len(table.columns)
    while sum(most) > room:
        slack = [own - floor for own, floor in zip(most, least, strict=True)]
        if max(slack) == 0:
            return None
        # The widest that can shrink does.
        widest = max((n for n in range(len(most)) if slack[n]), key=lambda n: most[n])
        most[widest] -= 1
    return most


def _longest_word(texts: Sequence[str]) -> int:
    longest = max((cell_len(word) for text in texts for word in text.split()), default=0)
    return min(longest, _LONGEST_WORD)


def _drawn(table: Table, width: int) -> RichTable:
    drawn = RichTable.grid(padding=(0, _BETWEEN_COLUMNS, 0, 0))
    drawn.title = Text(table.title, style="bold") if table.title else None
    drawn.title_justify = "left"
    columns = len(table.columns)
    even = max(1, width // columns - _BETWEEN_COLUMNS)
    widths = _widths(table, width) or [even] * columns
    for number, (name, own) in enumerate(zip(table.columns, widths, strict=True)):
        words = number == 0 or name in table.texts
        drawn.add_column(justify="left" if words else "right", overflow="fold", width=own)
    drawn.add_row(*map(Text, table.columns))
    drawn.add_row(*("-" * own for own in widths), style="dim")
    for number, row in enumerate(table.rows):
        style = "bold" if number in table.highlighted else None
        drawn.add_row(*map(Text, row), style=style)
    return drawn

"""A table of texts, which the terminal, Markdown and HTML render in one place each.

The terminal does in `optimizer.cli.terminal`, Markdown in `optimizer.report.study_markdown` and
HTML in templates/_table.html.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

_Item = TypeVar("_Item")

_MANY_COLUMNS, _FEW_ROWS = 7, 4


@dataclass(frozen=True)
class Table:
    """A table of texts. The first column is aligned left, figures are aligned right.

    Attributes:
        rows: each with a text for every column.
        notes: sentences below the table.
        texts: names of further columns that hold words: aligned left, wrapped where they are long.
        highlighted: numbers of rows that stand out, such as the best.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    highlighted: tuple[int, ...] = ()

    @property
    def for_page(self) -> Table:
        """The table as a page shows it: many figures of few items are below each other."""
        wide = len(self.columns) > _MANY_COLUMNS and 0 < len(self.rows) <= _FEW_ROWS
        return self.transposed if wide else self

    @property
    def transposed(self) -> Table:
        """The same with a column for each row, named by the row's first cell."""
        names, *figures = zip(*self.rows, strict=True)
        return Table(
            self.title,
            ("", *names),
            tuple((name, *cells) for name, cells in zip(self.columns[1:], figures, strict=True)),
            self.notes,
            texts=names,
        )


def table_of(
    title: str,
    columns: Mapping[str, Callable[[_Item], str]],
    items: Iterable[_Item],
    *,
    notes: tuple[str, ...] = (),
    texts: tuple[str, ...] = (),
) -> Table:
    """Return a table with a row for each item.

    Args:
        columns: by name, what the cell of an item says.
    """
    rows = tuple(tuple(cell(item) for cell in columns.values()) for item in items)
    return Table(title, tuple(columns), rows, notes, texts)


@dataclass(frozen=True)
class Line:
    """A sentence between tables.

    Attributes:
        tone: what a terminal may show by a colour.
    """

    text: str
    tone: Literal["plain", "good", "warning", "note"] = "plain"


Part: TypeAlias = Table | Line

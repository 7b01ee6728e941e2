"""Tables on terminals of several widths."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from optimizer.cli.terminal import print_table
from optimizer.report.table import Table, table_of

FIGURES = tuple(f"figure number {number}" for number in range(9))
CONFIGURATION = "openvino int8, no batching, 1 x 1 thread"


def wide(rows: int) -> Table:
    row = (CONFIGURATION, *("12,345.6",) * len(FIGURES))
    columns = ("which", "configuration", *FIGURES)
    return Table(
        "Wide", columns, tuple((f"row{n}", *row) for n in range(rows)), texts=("configuration",)
    )


def printed(table: Table, width: int) -> str:
    file = io.StringIO()
    print_table(Console(file=file, width=width), table)
    return file.getvalue()


@pytest.mark.parametrize("rows", [1, 2, 4, 20])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_word_is_broken_and_no_line_is_too_long(rows: int, width: int) -> None:
    text = printed(wide(rows), width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert words.count("12,345.6") == rows * len(FIGURES)
    assert all(f"row{number}" in words for number in range(rows))


def test_what_fits_is_printed_as_it_is() -> None:
    table = table_of("Squares", {"n": str, "square": lambda n: str(n * n)}, [2, 30])
    lines = [line.rstrip() for line in printed(table, 80).splitlines()]
    assert lines == ["Squares", "n   square", "--  ------", "2        4", "30     900", ""]


def test_many_figures_of_few_items_are_below_each_other_on_a_page() -> None:
    page = wide(2).for_page
    assert page.columns == ("", "row0", "row1")
    assert [row[0] for row in page.rows] == ["configuration", *FIGURES]
    assert wide(20).for_page == wide(20)


def test_markup_of_strangers_is_text() -> None:
    table = Table("[bold]T[/]", ("[red]a", "b"), (("[/nope]", "x"),))
    assert "[/nope]" in printed(table, 80)
    assert "[red]a" in printed(table, 80)
    assert "[bold]T[/]" in printed(table, 80)

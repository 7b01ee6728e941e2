"""Lines that name what they show, and times, as all views of a run draw them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from optimizer.cli.sparkline import ASCII, BLOCKS, sparkline
from optimizer.study.run_state import TimeLeft

WIDE = 60
"""Columns from which names stand in a column of their own."""

_LEVELS = 6

Row = tuple[str, str, str]
"""Name, text and style."""


class LabelledRows:
    """Names in a column of their own, or before their text where there is no room for one."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        draw = _beside if options.max_width >= WIDE else _before
        for row in self._rows:
            yield draw(*row)


def bars_for(options: ConsoleOptions) -> str:
    """Bars that the terminal can show."""
    return BLOCKS if options.encoding.startswith("utf") else ASCII


def level_rows(
    levels: Sequence[str],
    warnings: Sequence[str],
    rates: Sequence[float],
    p95s_ms: Sequence[float],
    bars: str,
) -> Iterator[Row]:
    """The latest levels of what is measured, and how rate and latency went."""
    for level in levels[-_LEVELS:]:
        yield "", level, "cyan"
    for warning in warnings:
        yield "", f"warning: {warning}", "yellow"
    if len(rates) > 1:
        yield "rate", f"{sparkline(rates, bars)} {rates[-1]:.0f}/s", "cyan"
        yield "p95", f"{sparkline(p95s_ms, bars)} {p95s_ms[-1]:.1f} ms", "cyan"


def trials_row(capacities: Sequence[float], bars: str) -> Row:
    """What the latest trials have served."""
    most = f"capacity by trial, up to {max(capacities):.0f}/s"
    return "trials", f"{sparkline(capacities, bars)} {most}", ""


def left_text(left: TimeLeft) -> str:
    """How long a phase still takes, and what bounds it; nothing where nothing tells."""
    if left.at_most is None:
        return ""
    if left.by_steps is None or (left.by_clock is not None and left.by_clock < left.by_steps):
        return f", {clock_text(left.at_most)} left of the time budget"
    return f", about {clock_text(left.at_most)} left in this phase"


def clock_text(seconds: float) -> str:
    """Minutes and seconds, and hours where there are any."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _beside(name: str, text: str, style: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(min_width=8, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(name, Text(text, style=style))
    return row


def _before(name: str, text: str, style: str) -> RenderableType:
    return Text.assemble(f"{name} " if name else "  ", (text, style))

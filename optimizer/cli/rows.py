"""Labelled lines of the state of a run, for the live view and `status`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from optimizer.report.number_formats import clock, milliseconds, rate
from optimizer.study.progress import TimeLeft

BLOCKS = "▁▂▃▄▅▆▇█"
ASCII = "_.-=+*#@"
"""Bars from low to high, for terminals with Unicode and without."""

_MOST_BARS = 24

WIDE = 60
"""Width from which labels have a column of their own."""

_LEVELS = 6

Row = tuple[str, str, str]
"""Name, text and style."""


class LabelledRows:
    """Labels in a column of their own, or before their text on a narrow terminal."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._rows = list(rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        draw = _beside if options.max_width >= WIDE else _before
        for row in self._rows:
            yield draw(*row)


@dataclass(frozen=True)
class WorkerLine:
    """One of several workers, and the trial that it runs.

    Attributes:
        number: of the trial; None where the worker is idle.
        losses: how often the worker was lost.
    """

    name: str
    number: int | None = None
    configuration: str = ""
    doing: str = ""
    losses: int = 0


class WorkerLines:
    """Workers, one a line that is cut off where it is too long; the last line counts the others."""

    def __init__(self, lines: Sequence[WorkerLine], most: int) -> None:
        self._lines = lines
        self._most = most if len(lines) <= most else max(0, most - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, rest = self._lines[: self._most], self._lines[self._most :]
        rows = Table.grid(padding=(0, 1))
        rows.add_column(min_width=8, no_wrap=True)
        rows.add_column()  # which may be narrowed, as one of whole lines may not
        for line in shown:
            rows.add_row(line.name, Text(_worker_text(line), no_wrap=True, overflow="ellipsis"))
        yield rows
        if rest:
            busy = sum(line.configuration != "" for line in rest)
            yield Text(f"and {len(rest)} more workers, {busy} of them with a trial", style="dim")


def _worker_text(line: WorkerLine) -> str:
    losses = f"; lost {line.losses} time{'s' if line.losses > 1 else ''}" if line.losses else ""
    if not line.configuration:
        return f"idle{losses}"
    trial = f"trial {line.number}, " if line.number is not None else ""
    return f"{trial}{line.doing or 'starting'}{losses}: {line.configuration}"


def bars_for(options: ConsoleOptions) -> str:
    """Return the bars that the terminal can show."""
    return BLOCKS if options.encoding.startswith("utf") else ASCII


def sparkline(values: Iterable[float], bars: str = BLOCKS) -> str:
    """Return the latest values as bars, from 0 to the largest of them."""
    shown = list(values)[-_MOST_BARS:]
    top = max(shown, default=0.0)
    if top <= 0:
        return bars[0] * len(shown)
    return "".join(bars[round(max(0.0, value) / top * (len(bars) - 1))] for value in shown)


def level_rows(
    levels: Sequence[str],
    warnings: Sequence[str],
    rates: Sequence[float],
    p95s_ms: Sequence[float],
    bars: str,
    most: int = _LEVELS,
) -> Iterator[Row]:
    """Yield the latest load levels of the current trial, and its rates and latencies."""
    for level in levels[max(0, len(levels) - most) :]:
        yield "", level, "cyan"
    for warning in warnings:
        yield "", f"warning: {warning}", "yellow"
    if len(rates) > 1:
        yield "rate", f"{sparkline(rates, bars)} {rate(rates[-1])}/s", "cyan"
        yield "p95", f"{sparkline(p95s_ms, bars)} {milliseconds(p95s_ms[-1])} ms", "cyan"


def trials_row(capacities: Sequence[float], bars: str) -> Row:
    """Return the capacities of the latest trials."""
    most = f"capacity by trial, up to {rate(max(capacities))}/s"
    return "trials", f"{sparkline(capacities, bars)} {most}", ""


def left_text(left: TimeLeft) -> str:
    """Return how long a phase still takes; nothing where that is unknown."""
    if left.at_most is None:
        return ""
    if left.by_steps is None or (left.by_clock is not None and left.by_clock < left.by_steps):
        return f", {clock(left.at_most)} of the time budget left"
    return f", about {clock(left.at_most)} left"


def _beside(name: str, text: str, style: str) -> RenderableType:
    row = Table.grid(padding=(0, 1))
    row.add_column(min_width=8, no_wrap=True)
    row.add_column(overflow="fold")
    row.add_row(name, Text(text, style=style))
    return row


def _before(name: str, text: str, style: str) -> RenderableType:
    return Text.assemble(f"{name} " if name else "  ", (text, style))

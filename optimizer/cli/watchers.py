"""A running study: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optimizer.cli.options import Verbosity
from optimizer.cli.rows import (
    WIDE,
    LabelledRows,
    Row,
    WorkerLine,
    WorkerLines,
    bars_for,
    left_text,
    level_rows,
    trials_row,
)
from optimizer.configuration.serving_config import describe
from optimizer.measurement.trial_record import outcome_name
from optimizer.report.number_formats import clock
from optimizer.study.event_text import event_lines, trial_text, warnings_of
from optimizer.study.events import ArtifactReady, Event, Note, TrialFinished, Watcher
from optimizer.study.progress import regret_text
from optimizer.study.run_state import CurrentMeasurement, RunState

_STYLES = {"ok": "green", "infeasible": "yellow", "bounded": "dim", "failed": "red"}
_RECENT = 8
_NOTES_AND_LEVELS = ((3, 6), (3, 4), (3, 2), (2, 2), (1, 1), (0, 1))
"""How many are shown, from a high terminal to a low one."""

_FRAME = 4
"""Columns of the panel's borders."""


@contextmanager
def watching(console: Console, verbosity: Verbosity | None = None) -> Iterator[Watcher]:
    """Yield the watcher of a run; the live view leaves the terminal as it was.

    The live view needs a terminal that can move its cursor; --verbose and --quiet do without it.
    """
    if verbosity == "quiet":
        yield Warnings(console)
        return
    if verbosity == "verbose" or not console.is_terminal or console.is_dumb_terminal:
        yield PlainLines(console, verbose=verbosity == "verbose")
        return
    view = LiveView()
    with Live(view, console=console, refresh_per_second=4, transient=True):
        yield view.watch


def lines_of_study(console: Console, study: str, verbosity: Verbosity | None) -> Watcher:
    """Return the watcher of one of several studies, whose lines begin with its name."""
    if verbosity == "quiet":
        return Warnings(console, f"{study}: ")
    return PlainLines(console, f"{study}: ", verbose=verbosity == "verbose")


class PlainLines:
    """Prints the events of a run that its log keeps, one a line.

    Args:
        start: of every line.
    """

    def __init__(self, console: Console, start: str = "", *, verbose: bool = False) -> None:
        self._console = console
        self._start = start
        self._verbose = verbose

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        for line in event_lines(event, verbose=self._verbose):
            self._console.print(
                f"{self._start}{line}", markup=False, highlight=False, soft_wrap=True
            )


class Warnings:
    """Prints warnings only, each of them once.

    Args:
        start: of every line.
    """

    def __init__(self, console: Console, start: str = "") -> None:
        self._console = console
        self._start = start
        self._said = set[str]()

    def __call__(self, event: Event) -> None:
        """Handle an event."""
        for text in warnings_of(event):
            if text not in self._said:
                self._said.add(text)
                self._console.print(
                    f"{self._start}warning: {text}",
                    style="yellow",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )


class LiveView:
    """The state of a run, in a panel that is no higher than a terminal of 24 lines."""

    def __init__(self) -> None:
        self._state = RunState(time.monotonic)
        self._notes: list[str] = []
        self._recent: deque[RenderableType] = deque(maxlen=_RECENT)

    def watch(self, event: Event) -> None:
        """Handle an event."""
        self._state.watch(event)
        match event:
            case ArtifactReady(name, detail, dropped):
                style = "yellow" if dropped else "green"
                mark = "left out" if dropped else "ready"
                self._recent.append(_line((f"{mark:9}", style), f"{name}: {detail}"))
            case TrialFinished(record, _):
                line = f"{describe(record.config)}: {trial_text(record)}"
                outcome = (f"{outcome_name(record.outcome):11}", _STYLES[record.outcome])
                self._recent.append(_line(outcome, line))
            case Note(text, warning):
                self._notes.append(f"warning: {text}" if warning else text)
            case _:
                pass

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        within = options.update(width=options.max_width - _FRAME)

        def room(parts: Sequence[RenderableType]) -> int:
            """Return the lines that are left beside the frame."""
            return console.height - len(console.render_lines(Group(*parts), within, pad=False)) - 2

        *more, least = _NOTES_AND_LEVELS
        for most in more:
            parts = self._parts(options, *most)
            if (left := room(parts)) >= 0:
                break
        else:
            parts = self._parts(options, *least)
            left = room(parts)
        # An empty line stands above the latest events.
        if self._recent and left > 1:
            parts += [Text(), *list(self._recent)[1 - left :]]
        yield Panel(Group(*parts), title="triton cost optimizer", title_align="left")

    def _parts(self, options: ConsoleOptions, notes: int, levels: int) -> list[RenderableType]:
        return [
            *self._latest_notes(notes),
            self._progress(options.max_width),
            *([WorkerLines(lines, 2 + levels)] if (lines := self._worker_lines) else []),
            LabelledRows(self._rows(bars_for(options), levels)),
        ]

    def _latest_notes(self, most: int) -> list[RenderableType]:
        return [Text(note, style="dim") for note in self._notes[max(0, len(self._notes) - most) :]]

    def _rows(self, bars: str, levels: int) -> Iterator[Row]:
        """Yield the current trial with its latest levels, the best one, and the potential."""
        state = self._state
        if not self._worker_lines:
            yield from self._now(bars, levels)
        if state.best is not None:
            best = f"{describe(state.best.config)}: {state.best.figures}"
            yield "best", best, "bold green"
        if len(state.capacities) > 1:
            yield trials_row(state.capacities, bars)
        if state.regret_bound is not None:
            yield "potential", regret_text(state.regret_bound), ""

    @property
    def _worker_lines(self) -> list[WorkerLine]:
        """The workers, where there are several and they do not wait for a run of the baseline."""
        workers = self._state.workers
        if not any(each.measurement is not None for each in workers.values()):
            return []
        return [
            WorkerLine(name, own.number, own.configuration, own.doing, worker.losses)
            for name, worker in workers.items()
            for own in [worker.measurement or CurrentMeasurement()]
        ]

    def _now(self, bars: str, levels: int) -> Iterator[Row]:
        """Yield what is measured, where that is one configuration."""
        now = self._state.now
        doing = f"; {now.doing}" if now.configuration else now.doing
        yield "now", now.configuration + doing, ""
        if now.expected:
            yield "expected", now.expected, "dim"
        yield from level_rows(now.levels, now.warnings, now.rates, now.p95s_ms, bars, levels)

    def _progress(self, width: int) -> RenderableType:
        state = self._state
        done = min(state.done, state.steps)
        times = f"{clock(time.monotonic() - state.started)} elapsed"
        times += left_text(state.time_left())
        bar = ProgressBar(total=state.steps, completed=done, width=24 if width >= WIDE else 8)
        row = Table.grid(padding=(0, 1))
        if width >= WIDE:
            row.add_row(f"{state.phase:8}", bar, f"{done}/{state.steps}", times)
            return row
        row.add_row(state.phase, bar, f"{done}/{state.steps}")
        return Group(row, Text(times))


def _line(mark: tuple[str, str], text: str) -> Text:
    """Return an event on one line, cut off where it is too long."""
    line = Text.assemble(mark, text)
    line.no_wrap, line.overflow = True, "crop"
    return line

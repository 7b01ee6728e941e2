"""What a person sees while a study runs: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from optimizer.measurement import LoadLevel
from optimizer.search.events import (
    ArtifactReady,
    Event,
    LevelEnded,
    LevelStarted,
    Note,
    PhaseStarted,
    ReferenceStarted,
    StepStarted,
    TrialEnded,
    TrialStarted,
    Watcher,
)
from optimizer.serving_config import describe
from optimizer.trial_record import TrialRecord

_STYLES = {"ok": "green", "infeasible": "yellow", "bounded": "dim", "failed": "red"}
_RECENT = 8


@contextmanager
def watching(console: Console) -> Iterator[Watcher]:
    """A watcher for as long as a run lasts; the live view leaves the terminal as it was."""
    if not console.is_terminal:
        yield PlainLines(console)
        return
    view = LiveView()
    with Live(view, console=console, refresh_per_second=4, transient=True):
        yield view.watch


def level_text(level: LoadLevel) -> str:
    """A measured level in one line."""
    offered = sum(stream.offered_per_second for stream in level.streams)
    load = "saturation" if level.kind == "saturation" else f"{offered:.0f}/s"
    errors = f", {level.errors} errors" if level.errors else ""
    void = "" if level.client.kept_up else f", void: sent up to {level.client.lag_ms:.1f} ms late"
    proven = f", {level.verdict}" if level.verdict is not None and not void else ""
    served = f"{level.achieved_per_second:.0f}/s served, p95 {_p95(level):.1f} ms"
    return f"{load}: {served}{errors}{void}{proven}"


def level_lines(level: LoadLevel) -> list[str]:
    """A measured level, and below it what a reader must know before trusting it."""
    return [level_text(level), *(f"  warning: {text}" for text in level.warnings)]


def _p95(level: LoadLevel) -> float:
    return max(stream.latency_ms(95) for stream in level.streams)


def trial_text(record: TrialRecord) -> str:
    """What came of a trial, in one line without its configuration."""
    if record.score is not None and record.measurement is not None:
        capacity = record.measurement.capacity_per_second
        cost = f"${record.score.usd_per_million_at_capacity:.4f} per million"
        return f"{capacity:.0f}/s, {cost}{_further_text(record)}"
    if record.outcome == "ok" and record.measurement is not None:
        return f"holds {record.measurement.capacity_per_second:.0f}/s"
    return record.reason + _further_text(record)


def _further_text(record: TrialRecord) -> str:
    """What is served within further limits."""
    return "".join(
        f"; within {each.limit_ms:g} ms: {each.measurement.capacity_per_second:.0f}/s"
        for each in record.further
    )


class PlainLines:
    """Prints one line for everything worth keeping in a log."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, event: Event) -> None:
        """Take in an event."""
        text = self._text(event)
        if text is not None:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _text(self, event: Event) -> str | None:
        match event:
            case PhaseStarted(phase, steps):
                text = f"{phase}: up to {steps} steps"
            case ArtifactReady(name, detail, dropped):
                text = f"  {name}: {'left out, ' if dropped else ''}{detail}"
            case TrialStarted(_, measured, of, config):
                text = f"  {measured}/{of} {describe(config)}"
            case ReferenceStarted(config):
                text = f"  the pace of the machine: {describe(config)}"
            case LevelEnded(level):
                text = "\n".join(f"      {line}" for line in level_lines(level))
            case TrialEnded(record, _):
                text = f"    {record.outcome}: {trial_text(record)}"
            case Note(said):
                text = said
            case _:
                return None
        return text


class LiveView:
    """The state of a run as the last events tell it, drawn anew a few times a second."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._phase = "start"
        self._steps, self._done = 1, 0
        self._phase_started = self._started
        self._doing = "checking what is needed"
        self._notes: list[str] = []
        self._config = ""
        self._levels: list[str] = []
        self._recent: deque[RenderableType] = deque(maxlen=_RECENT)
        self._best: TrialRecord | None = None

    def watch(self, event: Event) -> None:
        """Take in an event."""
        match event:
            case PhaseStarted(phase, steps):
                self._phase, self._steps, self._done = phase, max(1, steps), 0
                self._phase_started = time.monotonic()
                self._config, self._levels = "", []
            case StepStarted(doing):
                self._doing = doing
            case ArtifactReady(name, detail, dropped):
                self._done += 1
                style = "yellow" if dropped else "green"
                mark = "left out" if dropped else "ready"
                self._recent.append(Text.assemble((f"{mark:9}", style), f"{name}: {detail}"))
            case TrialStarted(_, measured, _, config):
                # The steps of the confirm phase are rounds, of which each finalist has its own.
                self._done = self._done if self._phase == "confirm" else measured - 1
                self._config, self._levels = describe(config), []
            case ReferenceStarted(config):
                self._config = f"the pace of the machine: {describe(config)}"
                self._levels = []
            case LevelStarted(offered, seconds):
                load = "saturating" if offered is None else f"offering {offered:.0f}/s"
                self._doing = f"{load} for {seconds:.0f} s"
            case LevelEnded(level):
                self._levels += level_lines(level)
            case TrialEnded(record, incumbent):
                self._done += 1
                self._best = incumbent or self._best
                line = f"{describe(record.config)}: {trial_text(record)}"
                self._recent.append(
                    Text.assemble((f"{record.outcome:11}", _STYLES[record.outcome]), line)
                )
            case Note(text):
                self._notes.append(text)

    def __rich__(self) -> RenderableType:
        parts: list[RenderableType] = [Text(note, style="dim") for note in self._notes]
        parts += [self._progress(), Text(f"now      {self._now()}")]
        parts += [Text(f"         {level}", style="cyan") for level in self._levels]
        if self._best is not None:
            best = f"{describe(self._best.config)}: {trial_text(self._best)}"
            parts.append(Text.assemble("best     ", (best, "bold green")))
        if self._recent:
            parts += [Text(), *self._recent]
        return Panel(Group(*parts), title="triton cost optimizer", title_align="left")

    def _now(self) -> str:
        return f"{self._config}; {self._doing}" if self._config else self._doing

    def _progress(self) -> RenderableType:
        done = min(self._done, self._steps)
        row = Table.grid(padding=(0, 1))
        row.add_row(
            f"{self._phase:8}",
            ProgressBar(total=self._steps, completed=done, width=24),
            f"{done}/{self._steps}",
            f"{_clock(time.monotonic() - self._started)} gone{self._left(done)}",
        )
        return row

    def _left(self, done: int) -> str:
        """Time that the phase still takes if its steps go on as they did."""
        if done == 0:
            return ""
        spent = time.monotonic() - self._phase_started
        return f", about {_clock(spent / done * (self._steps - done))} left in this phase"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"

"""`status`: show the progress of studies, from another shell or after their runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import click
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from optimizer.analysis.study_status import StudyStatus, all_statuses, study_status
from optimizer.cli.interruption import until_interrupted
from optimizer.cli.options import results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.rows import (
    LabelledRows,
    Row,
    WorkerLine,
    WorkerLines,
    bars_for,
    left_text,
    level_rows,
    trials_row,
)
from optimizer.cli.terminal import TerminalTable, print_line
from optimizer.measurement.trial_record import outcome_name
from optimizer.report.number_formats import MISSING, clock, count, percent, rate, usd
from optimizer.report.table import table_of
from optimizer.study.progress import (
    BestSoFar,
    CurrentTrial,
    Progress,
    TimeLeft,
    WorkerProgress,
    regret_text,
)

_SECONDS_BETWEEN = 2.0
_MOST_WORKERS = 64


@click.command()
@click.argument("study", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--watch", is_flag=True, help="Update until the run ends, or Ctrl-C.")
@results_option
def status(study: str | None, as_json: bool, watch: bool, results: Path) -> None:
    """Show the progress of STUDY, or a table of all studies. Nothing is changed."""
    console = OutputConsole()

    def read() -> list[StudyStatus]:
        return all_statuses(results) if study is None else [study_status(results, study)]

    def draw(studies: list[StudyStatus]) -> RenderableType:
        return statuses_table(studies) if study is None else Detail(studies[0], time.time())

    if watch:
        with until_interrupted():
            _watch(console, read, draw, as_json=as_json)
    elif as_json:
        click.echo(json.dumps([each.to_json() for each in read()], indent=2))
    else:
        console.print(draw(read()))


_Read = Callable[[], list[StudyStatus]]
_Draw = Callable[[list[StudyStatus]], RenderableType]


def _watch(console: Console, read: _Read, draw: _Draw, *, as_json: bool) -> None:
    """Update a terminal, or print lines that have changed, until no study is running."""
    if console.is_terminal and not console.is_dumb_terminal and not as_json:
        with Live(console=console, auto_refresh=False) as live:
            for studies in _updates(read):
                live.update(draw(studies), refresh=True)
        return
    printed = list[str]()
    for studies in _updates(read):
        lines = (
            [json.dumps([each.to_json() for each in studies])]
            if as_json
            else [_one_line(each) for each in studies]
        )
        for line in lines:
            if line not in printed:
                print_line(console, line)
        printed = lines


def _updates(read: _Read) -> Iterator[list[StudyStatus]]:
    while True:
        studies = read()
        yield studies
        if all(each.state != "running" for each in studies):
            return
        time.sleep(_SECONDS_BETWEEN)


def statuses_table(studies: list[StudyStatus]) -> RenderableType:
    """Return a table with a row for each study."""
    if not studies:
        return "there are no studies yet"
    columns: Mapping[str, Callable[[StudyStatus], str]] = {
        "study": lambda study: study.name,
        "state": _state_text,
        "trials": lambda study: count(sum(study.trials.values())),
        "best, requests/s": lambda study: _of_best(study, lambda b: rate(b.capacity_per_second)),
        "$ per million": lambda study: _of_best(
            study, lambda best: usd(best.usd_per_million_at_capacity)
        ),
    }
    unconfirmed = any(each.best is not None and not each.best.confirmed for each in studies)
    notes = ("*: unconfirmed, not measured again yet.",) if unconfirmed else ()
    return TerminalTable(table_of("", columns, studies, notes=notes, texts=("state",)))


def _of_best(study: StudyStatus, cell: Callable[[BestSoFar], str]) -> str:
    best = study.best
    return MISSING if best is None else f"{cell(best)}{'' if best.confirmed else '*'}"


class Detail:
    """The progress of one study in detail.

    Args:
        now: Unix time in seconds.
    """

    def __init__(self, study: StudyStatus, now: float) -> None:
        self._study = study
        self._now = now

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(_headline(self._study, self._now), style="bold")
        yield LabelledRows(_rows(self._study, self._now, bars_for(options)))
        progress = self._study.progress
        if progress is not None:
            if self._study.state == "running" and progress.workers:
                yield WorkerLines([_worker(each) for each in progress.workers], _MOST_WORKERS)
            yield LabelledRows(_latest(progress))


def _headline(study: StudyStatus, now: float) -> str:
    progress = study.progress
    text = f"{study.name}: {_state_text(study)}"
    if progress is None:
        return text
    if study.state != "running":
        return f"{text}, {clock(now - progress.updated)} ago"
    # The time left is that of the last update.
    since = now - progress.updated
    steps, time_left = progress.seconds_left_by_steps, progress.seconds_left_by_clock
    left = TimeLeft(
        None if steps is None else max(0.0, steps - since),
        None if time_left is None else max(0.0, time_left - since),
    )
    return f"{text}, {clock(now - progress.started)} elapsed{left_text(left)}"


def _state_text(study: StudyStatus) -> str:
    progress = study.progress
    if study.state == "running" and progress is not None:
        return f"running, {progress.phase} {progress.done}/{progress.steps}"
    if study.state == "cut off" and progress is not None:
        return f"cut off in phase {progress.phase}; rerun the command to resume"
    if study.state == "ended" and progress is not None and progress.ended:
        return f"ended: {progress.ended.splitlines()[0]}"
    return study.state


def _rows(study: StudyStatus, now: float, bars: str) -> Iterator[Row]:
    yield (
        "trials",
        ", ".join(f"{number} {outcome_name(outcome)}" for outcome, number in study.trials.items()),
        "",
    )
    if study.best is not None:
        best, name = study.best, "winner" if study.best.confirmed else "best"
        yield name, f"trial {best.number}: {best.configuration}: {best.found}", "bold green"
    if study.run_by is not None:
        yield "run by", study.run_by, ""
    progress = study.progress
    if progress is not None and len(progress.capacities) > 1:
        yield trials_row(progress.capacities, bars)
    if study.state == "running" and progress is not None:
        yield from _running(progress, now, bars)
    if study.disturbance is not None:
        share = f"{percent(study.disturbance.slowdown)} lost by the slowest worker"
        yield "together", f"{study.disturbance.text} ({share})", ""
    if study.state != "running" and study.search_ended is not None:
        yield "search", f"ended: {study.search_ended}", ""


def _latest(progress: Progress) -> Iterator[Row]:
    for n, line in enumerate(progress.events):
        yield "latest" if n == 0 else "", line.strip(), "dim"


def _worker(worker: WorkerProgress) -> WorkerLine:
    now = worker.now
    if now is None:
        return WorkerLine(worker.name, losses=worker.losses)
    return WorkerLine(worker.name, now.number, now.configuration, now.doing, worker.losses)


def _running(progress: Progress, now: float, bars: str) -> Iterator[Row]:
    # The lines of the workers show what each of them measures.
    if not any(worker.now is not None for worker in progress.workers):
        if progress.now is None:
            yield "now", progress.doing, ""
        else:
            yield from _current(progress.now, progress.doing, now, bars)
    if progress.gap is not None:
        yield "potential", regret_text(progress.gap), ""


def _current(trial: CurrentTrial, doing: str, now: float, bars: str) -> Iterator[Row]:
    number = f"trial {trial.number}, " if trial.number is not None else ""
    since = f" for {clock(now - trial.since)}" if trial.since is not None else ""
    yield "now", f"{number}{trial.configuration}{since}; {doing}", ""
    if trial.expected:
        yield "expected", trial.expected, "dim"
    yield from level_rows(trial.levels, trial.warnings, trial.rates, trial.p95s_ms, bars)


def _one_line(study: StudyStatus) -> str:
    best = "" if study.best is None else f"; best {study.best.found}"
    return f"{study.name}: {_state_text(study)}; {sum(study.trials.values())} trials{best}"

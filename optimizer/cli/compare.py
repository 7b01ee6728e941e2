"""`compare`: two or more studies side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizer.analysis.capacity_ratio import Ratio
from optimizer.analysis.comparison import (
    ComparedStudy,
    Comparison,
    Entry,
    Shared,
    SpaceDifference,
)
from optimizer.cli.options import json_option, results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.plain_table import plain_table
from optimizer.commands.compare import CompareOptions, compare_studies
from optimizer.configuration.serving_config import describe
from optimizer.fleet.price_rules import price_mismatch
from optimizer.measurement.cost import Demand, Score
from optimizer.study.decision import ConfirmedCapacity

_SHOWN = 10
"""Configurations that two studies share: the rest is in the JSON file."""

_NOTABLE = 0.05
"""Median change of what two studies on machines alike have both measured that is worth a word."""

_VERDICTS: Mapping[str, str] = {
    "apart": "told apart",
    "within the pace": "not beyond the machines' own change of pace",
    "not apart": "cannot be told apart",
    "no interval": "no interval: no load was too much",
}


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY STUDY...")
@json_option("the comparison")
@results_option
def compare(**options: Any) -> int:
    """Compare studies with the first one.

    STUDY is a name in the folder of results, or the path of a study's folder that was copied from
    another host. Studies of different workloads are refused, with every difference.
    """
    console, chosen = OutputConsole(), CompareOptions(**options)
    show_comparison(console, compare_studies(chosen))
    if chosen.json is not None:
        console.print_line(f"data: {chosen.json}")
    return 0


def show_comparison(console: Console, comparison: Comparison) -> None:
    """Print studies side by side."""
    names = [study.name for study in comparison.studies]
    _show_differences(console, "Machines: what differs", names, comparison.machine)
    _show_differences(console, "Space files: what differs", names, comparison.settings)
    console.print(_charged(comparison))
    for what, of in (("Baseline", _baseline), ("Best", _best)):
        console.print(_entries(what, comparison, of))
    if not comparison.same_demand:
        console.print(_recounted(comparison))
    for shared in comparison.shared:
        _show_shared(console, names[0], shared)
    for note in _notes(comparison):
        _say(console, note)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _baseline(study: ComparedStudy) -> Entry | None:
    return study.baseline


def _best(study: ComparedStudy) -> Entry | None:
    return study.best


def _side_by_side(title: str, names: Sequence[str]) -> Table:
    table = plain_table(title, "", *names)
    for column in table.columns[1:]:
        column.justify = "left"
    return table


def _show_differences(
    console: Console, title: str, names: Sequence[str], differences: Sequence[SpaceDifference]
) -> None:
    if not differences:
        _say(console, f"{title}: nothing")
        return
    table = _side_by_side(title, names)
    for each in differences:
        table.add_row(Text(each.what), *(Text(value) for value in each.values))
    console.print(table)


def _charged(comparison: Comparison) -> Table:
    table = _side_by_side("Price and demand", [study.name for study in comparison.studies])
    searched = [study.reading.searched for study in comparison.studies]
    table.add_row("instance", *(own.price.instance_type for own in searched))
    table.add_row("$ per hour", *(f"{own.price.usd_per_hour:g}" for own in searched))
    table.add_row("of", *(f"{own.price.source}, {own.price.as_of}" for own in searched))
    table.add_row("demand", *(_demand(own.demand) for own in searched))
    return table


def _demand(demand: Demand) -> str:
    headroom = f", {demand.headroom:.0%} headroom" if demand.headroom else ""
    return f"{demand.requests_per_second:,.6g}/s{headroom}"


def _entries(
    what: str, comparison: Comparison, of: Callable[[ComparedStudy], Entry | None]
) -> Table:
    table = _side_by_side(what, [study.name for study in comparison.studies])
    entries = [of(study) for study in comparison.studies]
    for name, cell in _ENTRY.items():
        table.add_row(name, *(cell(e) if e is not None else "-" for e in entries))
    scores = [_score(e.finding) if e is not None else None for e in entries]
    for name, value in _COST.items():
        table.add_row(name, *_beside_the_first(scores, value))
    return table


def _beside_the_first(
    scores: Sequence[Score | None], value: Callable[[Score], float]
) -> Iterator[str]:
    """A figure of each, and what that is of the first's."""
    first, *others = scores
    yield "-" if first is None else _figure(value(first))
    for score in others:
        if score is None or first is None:
            yield "-" if score is None else _figure(value(score))
        else:
            yield f"{_figure(value(score))} ({value(score) / value(first):.2f} x)"


def _recounted(comparison: Comparison) -> Table:
    first, *_ = comparison.studies
    demand = first.reading.searched.demand
    title = f"Best, all at the demand of {first.name} ({_demand(demand)})"
    table = _side_by_side(title, [study.name for study in comparison.studies])
    found = [
        study.recounted or (study.best.finding if study.best is not None else None)
        for study in comparison.studies
    ]
    table.add_row(
        "configuration", *(describe(f.candidate.config) if f is not None else "-" for f in found)
    )
    scores = [_score(f) if f is not None else None for f in found]
    for name, value in _FLEET.items():
        table.add_row(name, *_beside_the_first(scores, value))
    return table


def _figure(value: float) -> str:
    """Counts whole, dollars with enough digits."""
    return f"{value:,.0f}" if isinstance(value, int) or value >= 1000 else f"{value:.4g}"


def _score(finding: ConfirmedCapacity) -> Score:
    return finding.candidate.score


def _capacity(finding: ConfirmedCapacity) -> float:
    return finding.candidate.measurement.capacity_per_second


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _estimated(entry: Entry) -> str:
    text = _number(entry.estimate.per_second)
    interval = entry.estimate.interval
    return (
        text if interval is None else f"{text} ({_number(interval[0])} to {_number(interval[1])})"
    )


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return ""
    if ratio.low is None or ratio.high is None:
        return f"{ratio.value:.2f}"
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"


def _latencies(finding: ConfirmedCapacity) -> str:
    found = [finding.latency_ms(percentile) for percentile in (50, 95, 99)]
    return " / ".join("-" if value is None else f"{value:.1f}" for value in found)


def _latency_at_demand(entry: Entry) -> str:
    return f"{entry.finding.candidate.p95_ms_at_demand:.1f}"


_ENTRY: Mapping[str, Callable[[Entry], str]] = {
    "configuration": lambda e: describe(e.finding.candidate.config),
    "figures": lambda e: e.finding.status,
    "capacity, requests/s": lambda e: _number(_capacity(e.finding)),
    "by all levels (95% interval)": _estimated,
    "relative to the first": lambda e: _ratio(e.ratio),
    "": lambda e: _VERDICTS[e.ratio.verdict] if e.ratio is not None else "",
    "p50 / p95 / p99 at capacity, ms": lambda e: _latencies(e.finding),
    "p95 at the demand per replica, ms": _latency_at_demand,
}

_FLEET: Mapping[str, Callable[[Score], float]] = {
    "$ per million at demand": lambda score: score.usd_per_million_at_demand,
    "replicas": lambda score: score.replicas,
    "fleet, $ per hour": lambda score: score.fleet_usd_per_hour,
}

_COST: Mapping[str, Callable[[Score], float]] = {
    "$ per million at capacity": lambda score: score.usd_per_million_at_capacity,
    **_FLEET,
}


def _show_shared(console: Console, first: str, shared: Shared) -> None:
    found = shared.configurations
    if not found or shared.median is None:
        _say(console, f"{first} and {shared.other} have measured no configuration in common")
        return
    table = plain_table(
        f"Measured in {first} and in {shared.other}",
        "configuration", f"{first}, requests/s", f"{shared.other}, requests/s", "ratio", "",
    )  # fmt: skip
    table.columns[-1].justify = "left"
    for each in found[:_SHOWN]:
        table.add_row(
            describe(each.config),
            _number(each.first_per_second),
            _number(each.other_per_second),
            _ratio(each.ratio),
            _VERDICTS[each.ratio.verdict],
        )
    console.print(table)
    if len(found) > _SHOWN:
        _say(console, f"and {len(found) - _SHOWN} more, of smaller ratios (--json has them all)")
    low, high = found[-1].ratio.value, found[0].ratio.value
    _say(
        console,
        f"{shared.other} serves {shared.median:.2f} times what {first} does (median of "
        f"{len(found)} configurations that both measured, {low:.2f} to {high:.2f})",
    )
    if shared.in_one_alone:
        _say(console, f"within the limits in one of the two alone: {shared.in_one_alone} more")


def _notes(comparison: Comparison) -> list[str]:
    """What a reader must know before trusting the ratios."""
    notes = [
        "intervals of ratios are made of each study's own; how much a machine differs from one day "
        "to the next is not in them"
    ]
    for study in comparison.studies:
        if study.pace is not None:
            notes.append(
                f"{study.name}: its machine's pace changed by up to {study.pace:+.0%} while it "
                "ran; ratios within that are not told apart"
            )
        if not study.ended:
            notes.append(f"{study.name} has not ended: `run` goes on with it")
        if study.best is None:
            notes.append(f"{study.name}: {study.reading.nothing_found}")
    first, *others = comparison.studies
    for study, shared in zip(others, comparison.shared, strict=True):
        alike = study.reading.machine == first.reading.machine
        if alike and shared.median is not None and abs(shared.median - 1) > _NOTABLE:
            notes.append(
                f"{study.name} and {first.name} were run on machines alike in everything that is "
                f"recorded, and yet one serves {shared.median:.2f} times what the other does: "
                "that is in all their ratios"
            )
    prices = [study.reading.searched.price for study in comparison.studies]
    if (mixed := price_mismatch(prices)) is not None:
        notes.append(f"{mixed}; dollars differ by that too")
    return notes

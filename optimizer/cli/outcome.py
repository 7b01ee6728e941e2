"""What a person sees when a study has ended: the trials, the winner, and where the files are."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optimizer.analysis.summary import (
    MachineDrift,
    ParetoEntry,
    StudySummary,
    SummaryClaim,
    SummaryEntry,
)
from optimizer.commands.run import RunResult
from optimizer.configuration.serving_config import describe
from optimizer.study.event_text import trial_text

_SURE = 0.999
_TIMES = 2.0
"""From here on a ratio is easier to read than a percentage."""


def show_outcome(console: Console, result: RunResult) -> None:
    """Print the end of a study."""
    summary = result.summary
    if result.was_finished:
        console.print(f"study {summary.study} is finished: {summary.ended}")
        console.print(f"more: {_how_to_go_on(summary)}--study NAME begins another")
    console.print(_trials(result))
    if summary.best is None:
        console.print(Text(_why_nothing(summary), style="yellow"))
    else:
        console.print(_comparison(summary))
        if summary.claims:
            console.print(_distances(summary.claims))
        _say_what_it_means(console, summary)
    if summary.pareto:
        show_front(console, summary.pareto)
    _say_end(console, result)
    _say_pace(console, summary.pace)
    _say_where(console, result)


def _how_to_go_on(summary: StudySummary) -> str:
    """What would measure more; nothing does where every configuration is measured."""
    if summary.space_exhausted:
        return "widen the parameters; "
    return f"{'--sampler gp' if summary.settled else '--trials N with a larger N'} goes on; "


def _why_nothing(summary: StudySummary) -> str:
    why = summary.nothing_found  # studies of earlier versions have none
    if why is None:
        return str(summary.outcome)
    return f"{why.reason}; {why.advice}"


def _trials(result: RunResult) -> Table:
    table = Table(title="Trials", title_justify="left")
    for name in ("trial", "configuration", "outcome", "found"):
        table.add_column(name, overflow="fold")
    for record in result.directory.trials.read_all().values():
        table.add_row(
            str(record.number),
            describe(record.config),
            record.outcome,
            Text(trial_text(record)),
        )
    return table


def _comparison(summary: StudySummary) -> Table:
    table = Table(title="Confirmed by measuring again", title_justify="left")
    table.add_column("")
    best, baseline = summary.best, summary.baseline
    columns = [("baseline", baseline)] if baseline is not None else []
    columns += [("best", best)] if best is not None else []
    others = [entry for entry in summary.equal_cost[1:] if entry != baseline]
    columns += [("equal cost", entry) for entry in others]
    for name, _ in columns:
        table.add_column(name, overflow="fold")
    rows: dict[str, Callable[[SummaryEntry], str]] = {
        "configuration": lambda e: e.description,
        "capacity, requests/s": lambda e: f"{e.capacity_per_second:.0f}",
        "p50 / p95 / p99 at capacity, ms": lambda e: " / ".join(
            f"{e.latency_ms[p]:.1f}" for p in ("p50", "p95", "p99")
        ),
        "p95 at the demand per replica, ms": lambda e: f"{e.latency_ms_at_demand_p95:.1f}",
        "$ per million at capacity": lambda e: f"{e.usd_per_million_at_capacity:.4f}",
        "$ per million at demand": lambda e: f"{e.usd_per_million_at_demand:.4f}",
        "replicas": lambda e: str(e.replicas),
        "fleet, $ per hour": lambda e: f"{e.fleet_usd_per_hour:.3f}",
    }
    for name, of in rows.items():
        table.add_row(name, *(of(entry) for _, entry in columns))
    return table


def _distances(claims: Sequence[SummaryClaim]) -> Table:
    table = Table(title="How far the best is from the others", title_justify="left")
    for name in ("measured beside it", "the best serves", "95% interval", "confidence"):
        table.add_column(name, overflow="fold")
    for claim in claims:
        low, ratio, high = (
            claim.capacity_ratio_low,
            claim.capacity_ratio,
            claim.capacity_ratio_high,
        )
        times = ratio >= _TIMES
        table.add_row(
            claim.rival,
            f"{ratio:.1f} times as much" if times else _more_or_less(ratio - 1),
            f"{low:.1f} to {high:.1f}" if times else f"{low - 1:+.0%} to {high - 1:+.0%}",
            _confidence(claim) if claim.apart else "cannot be told apart",
        )
    return table


def show_front(console: Console, front: Sequence[ParetoEntry]) -> None:
    """Of a study of several limits: what nothing beats within all of them."""
    table = Table(title="$ per million within each limit: the Pareto front", title_justify="left")
    table.add_column("configuration", overflow="fold")
    for limit_ms in front[0].limits_ms:
        table.add_column(f"{limit_ms:g} ms", justify="right", overflow="fold")
    for entry in front:
        costs = entry.usd_per_million_at_capacity
        table.add_row(entry.description, *("missed" if c is None else f"{c:.4f}" for c in costs))
    console.print(table)


def _more_or_less(change: float) -> str:
    return f"{abs(change):.0%} {'more' if change >= 0 else 'less'}"


def _confidence(claim: SummaryClaim) -> str:
    """That the difference has the sign that it shows."""
    sure = max(claim.confidence, 1 - claim.confidence)
    return "above 99.9%" if sure > _SURE else f"{sure:.1%}"


def _say_end(console: Console, result: RunResult) -> None:
    """What ended the search, and what it may have missed."""
    summary = result.summary
    said = [] if result.was_finished else [f"the search ended: {summary.ended}"]
    gap = summary.remaining_gap  # studies of earlier versions have none
    if gap is not None and summary.best is not None and not summary.space_exhausted:
        said.append(f"an unmeasured configuration may be up to {gap:.0%} cheaper (95%)")
    if said:
        console.print("; ".join(said), highlight=False)


def _say_pace(console: Console, pace: MachineDrift) -> None:
    """Whether the machine was the same from beginning to end."""
    rates, change = pace.saturation_per_second, pace.largest_change
    if len(rates) < 2:
        return
    seen = f"the baseline saturated at {min(rates):.0f} to {max(rates):.0f}/s in {len(rates)} runs"
    if change is None:
        console.print(f"the machine kept its pace: {seen}", highlight=False)
    else:
        console.print(
            f"the machine's pace changed by up to {change:+.0%}: {seen}; trials of different times "
            "differ by as much, what was confirmed in turn does not",
            style="yellow",
            highlight=False,
        )


def _say_what_it_means(console: Console, summary: StudySummary) -> None:
    best, baseline = summary.best, summary.baseline
    if best is not None and baseline is not None:
        share = best.usd_per_million_at_capacity / baseline.usd_per_million_at_capacity
        console.print(
            f"the best serves a million requests for {share:.0%} of what the baseline takes",
            style="green",
        )
    price = summary.price
    assert price is not None
    console.print(
        f"price: {price.instance_type} ${price.usd_per_hour} an hour "
        f"({price.source}, {price.as_of}); the whole instance is charged",
        highlight=False,
        markup=False,
    )
    if summary.accuracy_evidence == "synthetic":
        console.print(
            "accuracy was judged on generated inputs: give evaluation data before you trust "
            "a lower precision",
            style="yellow",
        )


def _say_where(console: Console, result: RunResult) -> None:
    summary, root = result.summary, result.directory.root
    counts = ", ".join(f"{count} {outcome}" for outcome, count in summary.trials.items())
    console.print(
        f"{counts}; {summary.wall_seconds:.0f} s in all, "
        f"{summary.measuring_seconds:.0f} s measuring, "
        f"{summary.building_seconds:.0f} s building, "
        f"{summary.overhead_seconds_per_trial_median:.1f} s else per trial (median)",
        highlight=False,
    )
    for name, path in (
        ("summary", result.directory.summary),
        *([("model repository", result.directory.best)] if summary.best is not None else []),
        ("trials", result.directory.trials.folder),
        ("logs", root / "logs"),
    ):
        if path.exists():
            console.print(f"{name}: {path}", soft_wrap=True, highlight=False, markup=False)

"""Studies side by side, in tables and sentences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from optimizer.analysis.capacity_ratio import Ratio
from optimizer.analysis.comparison import (
    ComparedStudy,
    Comparison,
    Entry,
    Shared,
    SharedConfiguration,
    SpaceDifference,
)
from optimizer.configuration.serving_config import describe
from optimizer.fleet.price_rules import price_mismatch
from optimizer.measurement.cost import Demand
from optimizer.report import number_formats as form
from optimizer.report.configurations import FIGURES
from optimizer.report.pipeline_tables import bottlenecks_table, breakdowns_of
from optimizer.report.table import Line, Part, Table, table_of
from optimizer.study.decision import ConfirmedCapacity

_SHOWN = 10
"""Configurations that two studies share: the rest is in the JSON file."""

_NOTABLE = 0.05
"""Median difference between studies of identical machines that a reader is told of."""

_VERDICTS: Mapping[str, str] = {
    "apart": "significant difference",
    "within the pace": "within the drift of the machines",
    "not apart": "no significant difference",
    "no interval": "no interval: no load was too much",
}


def comparison_parts(comparison: Comparison) -> Iterator[Part]:
    """Yield studies side by side, all relative to the first."""
    names = tuple(study.name for study in comparison.studies)
    yield _differences("Machines: differences", names, comparison.machine)
    yield _differences("Space files: differences", names, comparison.settings)
    yield _charged(comparison)
    yield _entries("Baseline", comparison, lambda study: study.baseline)
    yield _entries("Best", comparison, lambda study: study.best)
    yield from _pipelines(comparison)
    if not comparison.same_demand:
        yield _recounted(comparison)
    for shared in comparison.shared:
        yield from _shared(names[0], shared)
    for note in _notes(comparison):
        yield Line(note)


def _differences(
    title: str, names: tuple[str, ...], differences: Sequence[SpaceDifference]
) -> Part:
    if not differences:
        return Line(f"{title}: none")
    rows = tuple((each.what, *each.values) for each in differences)
    return Table(title, ("", *names), rows, texts=names)


def _charged(comparison: Comparison) -> Table:
    columns: Mapping[str, Callable[[ComparedStudy], str]] = {
        "study": lambda study: study.name,
        "instance": lambda study: study.reading.searched.price.instance_type,
        "$ an hour": lambda study: form.price_per_hour(study.reading.searched.price.usd_per_hour),
        "source": lambda study: study.reading.searched.price.source,
        "as of": lambda study: study.reading.searched.price.as_of,
        "demand": lambda study: _demand(study.reading.searched.demand),
    }
    texts = ("instance", "source", "as of", "demand")
    return table_of("Price and demand", columns, comparison.studies, texts=texts)


def _demand(demand: Demand) -> str:
    headroom = f", {form.percent(demand.headroom)} headroom" if demand.headroom else ""
    return f"{form.rate(demand.requests_per_second)} requests/s{headroom}"


def _entries(
    title: str, comparison: Comparison, of: Callable[[ComparedStudy], Entry | None]
) -> Table:
    """Return the figures of a configuration of each study, and its ratios to the first's."""
    entries = [of(study) for study in comparison.studies]
    first = entries[0]
    rows = []
    for study, entry in zip(comparison.studies, entries, strict=True):
        columns = (*FIGURES, *_RELATIVE, *_COST_RATIOS)
        if entry is None:
            rows.append((study.name, *(form.MISSING for _ in columns)))
            continue
        costs = (_cost_ratio(entry, first, cost) for cost in _COST_RATIOS.values())
        figures = (cell(entry.finding) for cell in FIGURES.values())
        rows.append((study.name, *figures, *(cell(entry) for cell in _RELATIVE.values()), *costs))
    texts = ("configuration", "status", "verdict")
    return Table(title, ("study", *FIGURES, *_RELATIVE, *_COST_RATIOS), tuple(rows), texts=texts)


def _estimated(entry: Entry) -> str:
    text = form.rate(entry.estimate.per_second)
    interval = entry.estimate.interval
    return text if interval is None else f"{text} ({form.interval(*interval, form.rate)})"


def _ratio(ratio: Ratio | None) -> str:
    if ratio is None:
        return form.MISSING
    if ratio.low is None or ratio.high is None:
        return form.ratio(ratio.value)
    return f"{form.ratio(ratio.value)} ({form.interval(ratio.low, ratio.high, form.ratio)})"


_RELATIVE: Mapping[str, Callable[[Entry], str]] = {
    "capacity by all levels": _estimated,
    "capacity / first's": lambda entry: _ratio(entry.ratio),
    "verdict": lambda entry: _VERDICTS[entry.ratio.verdict] if entry.ratio else form.MISSING,
}

_COST_RATIOS: Mapping[str, Callable[[ConfirmedCapacity], float]] = {
    "$ per million / first's": lambda each: each.candidate.score.usd_per_million_at_capacity,
    "fleet cost / first's": lambda each: each.candidate.score.fleet_usd_per_hour,
}


def _cost_ratio(
    entry: Entry, first: Entry | None, cost: Callable[[ConfirmedCapacity], float]
) -> str:
    if first is None or entry is first:
        return form.MISSING
    return form.ratio(cost(entry.finding) / cost(first.finding))


def _pipelines(comparison: Comparison) -> Iterator[Part]:
    """Yield which step limits the best of each study; nothing without a pipeline."""
    named = [
        (study.name, own)
        for study in comparison.studies
        if study.best is not None
        for own in breakdowns_of(study.best.finding, study.reading.trials)
        if own.limits is not None
    ]
    if named:
        yield bottlenecks_table("Pipelines of the best: what limits them at saturation", named)


def _recounted(comparison: Comparison) -> Table:
    first = comparison.studies[0]
    best = [
        (study, study.recounted or (study.best.finding if study.best is not None else None))
        for study in comparison.studies
    ]
    names = ("configuration", "$ per million at demand", "replicas", "fleet, $ an hour")
    rows = tuple(
        (study.name, *(FIGURES[name](each) if each is not None else form.MISSING for name in names))
        for study, each in best
    )
    demand = _demand(first.reading.searched.demand)
    title = f"Best, all at the demand of {first.name} ({demand})"
    return Table(title, ("study", *names), rows, texts=("configuration",))


def _shared(first: str, shared: Shared) -> Iterator[Part]:
    both = shared.configurations
    if not both or shared.median is None:
        yield Line(f"{first} and {shared.other} have measured no configuration in common.")
        return
    columns: Mapping[str, Callable[[SharedConfiguration], str]] = {
        "configuration": lambda each: describe(each.config),
        f"{first}, requests/s": lambda each: form.rate(each.first_per_second),
        f"{shared.other}, requests/s": lambda each: form.rate(each.other_per_second),
        "ratio": lambda each: _ratio(each.ratio),
        "verdict": lambda each: _VERDICTS[each.ratio.verdict],
    }
    title = f"Measured in {first} and in {shared.other}"
    yield table_of(title, columns, both[:_SHOWN], texts=("verdict",))
    if len(both) > _SHOWN:
        yield Line(f"{len(both) - _SHOWN} more have smaller ratios (--json lists all).")
    ends = form.interval(both[-1].ratio.value, both[0].ratio.value, form.ratio)
    yield Line(
        f"{shared.other} serves {form.ratio(shared.median)} times what {first} does (median of "
        f"{len(both)} configurations that both measured, {ends})."
    )
    if shared.in_one_alone:
        yield Line(f"Within the limits in only one of the two: {shared.in_one_alone} more.")


def _notes(comparison: Comparison) -> Iterator[str]:
    """Yield what a reader must know before trusting the ratios."""
    yield (
        "Intervals of ratios come from the intervals of both studies; how much a machine differs "
        "from one day to the next is not in them."
    )
    for study in comparison.studies:
        if study.drift is not None:
            yield (
                f"{study.name}: machine performance drifted by up to {form.change(study.drift)} "
                "during the study; ratios within that are not called significant."
            )
        if not study.ended:
            yield f"{study.name} has not ended: `run` resumes it."
        if study.best is None:
            yield f"{study.name}: {study.reading.why_nothing_confirmed}."
    first, *others = comparison.studies
    for study, shared in zip(others, comparison.shared, strict=True):
        alike = study.reading.machine == first.reading.machine
        if alike and shared.median is not None and abs(shared.median - 1) > _NOTABLE:
            yield (
                f"{study.name} and {first.name} ran on machines that are recorded as identical, "
                f"yet one serves {form.ratio(shared.median)} times what the other does: that is "
                "in all their ratios."
            )
    prices = [study.reading.searched.price for study in comparison.studies]
    if (mixed := price_mismatch(prices)) is not None:
        yield f"Costs also differ by this: {mixed}."

"""Instance types for a demand: what each costs and does, and what every figure rests on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import date

from optimizer.configuration.serving_config import describe
from optimizer.fleet.instance_estimate import METRICS, Basis, InstanceEstimate, SourcedFigure
from optimizer.fleet.price_list import price_warning
from optimizer.fleet.recommendation import Recommendation
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table, table_of

_MARKS: Mapping[Basis, str] = {
    "price": "p",
    "confirmed": "c",
    "measured": "m",
    "extrapolated": "x",
}
_LEGEND = (
    "c: confirmed by measuring again, m: measured, x: extrapolated, p: price; "
    "=: derived, with the confidence of its weakest input; -: not measured."
)
_USERS = "Utilisation and power are means over the whole load."

_FORMATS: Mapping[str, Callable[[float], str]] = {
    "FleetCostPerHour": form.usd,
    "FleetCostPerMillion": form.usd,
    "InitialInstanceCount": form.rate,
    "CostPerHour": form.price_per_hour,
    "CostPerInference": form.usd,
    "MaxInvocations": form.rate,
    "ModelLatency": form.milliseconds,
    "CpuUtilization": form.milliseconds,
    "MemoryUtilization": form.milliseconds,
    "GpuUtilization": form.milliseconds,
    "GpuMemoryUtilization": form.milliseconds,
    "GpuPower": form.rate,
    "ModelSetupTime": form.milliseconds,
}


def recommendation_parts(
    recommendation: Recommendation, today: date, *, by_users: bool = False
) -> Iterator[Part]:
    """Yield instance types, best first, and what to make of them.

    Args:
        by_users: whether load-test jobs have measured them.
    """
    if recommendation.estimates:
        yield _table(recommendation)
        yield Line(f"{_LEGEND} {_USERS}" if by_users else _LEGEND, "note")
        yield from _best(recommendation)
    for estimate in recommendation.estimates:
        if estimate.extrapolated is not None:
            yield Line(f"{estimate.price.instance_type} is extrapolated: {estimate.extrapolated}.")
    for warning in dict.fromkeys(
        f"{estimate.price.instance_type} ({estimate.study}): {warning}."
        for estimate in recommendation.estimates
        for warning in estimate.warnings
    ):
        yield Line(warning, "warning")
    for text in recommendation.accepted:
        yield Line(f"Accepted: {text}.", "warning")
    for study, reason in recommendation.nothing:
        yield Line(f"{study}: nothing within the limits: {reason}.", "warning")
    for price in dict.fromkeys(estimate.price for estimate in recommendation.estimates):
        yield Line(f"Price: {form.price_text(price)}.")
        if (old := price_warning(price, today)) is not None:
            yield Line(old, "warning")


def _table(recommendation: Recommendation) -> Table:
    demand = recommendation.demand
    headroom = f", {form.percent(demand.headroom)} headroom" if demand.headroom else ""
    columns: dict[str, Callable[[InstanceEstimate], str]] = {
        "instance type": lambda estimate: estimate.price.instance_type,
        "study": lambda estimate: estimate.study,
        "configuration": lambda estimate: describe(estimate.candidate.config),
    }
    for name, unit in METRICS.items():
        if any(estimate.metrics[name] is not None for estimate in recommendation.estimates):
            columns[f"{name}, {unit}" if unit else name] = _cell_of(name)
    title = f"Instance types for {form.rate(demand.requests_per_second)} requests/s{headroom}"
    return table_of(title, columns, recommendation.estimates, texts=("study", "configuration"))


def _cell_of(name: str) -> Callable[[InstanceEstimate], str]:
    def cell(estimate: InstanceEstimate) -> str:
        figure = estimate.metrics[name]
        if figure is None:
            return form.MISSING
        percentile = f"p{estimate.latency_percentile:g} " if name == "ModelLatency" else ""
        return f"{percentile}{_FORMATS[name](figure.value)} {_mark(figure)}"

    return cell


def _mark(figure: SourcedFigure) -> str:
    return ("=" if figure.worked_out else "") + _MARKS[figure.basis]


def _best(recommendation: Recommendation) -> Iterator[Line]:
    best, *others = recommendation.estimates
    yield Line(f"Recommended: {_whole(best)}.", "good")
    if best.extrapolated is not None:
        measured = recommendation.best_measured
        least = f"; the best measured one: {_whole(measured)}" if measured else ""
        yield Line(f"The recommendation is extrapolated{least}.", "warning")
    for other in others[:1]:
        more = other.fleet_usd_per_hour / best.fleet_usd_per_hour - 1
        costs = f"{form.percent(more)} more" if round(more, 3) else "the same"
        yield Line(f"The next best costs {costs}: {_whole(other)}.")


def _whole(estimate: InstanceEstimate) -> str:
    cost, latency = estimate.candidate.score, estimate.metrics["ModelLatency"]
    assert latency is not None, "what is offered was measured"
    return (
        f"{form.count(cost.replicas)} x {estimate.price.instance_type} with "
        f"{describe(estimate.candidate.config)}; {form.usd(cost.fleet_usd_per_hour)} an hour, "
        f"{form.usd(cost.usd_per_million_at_demand)} per million, p{estimate.latency_percentile:g} "
        f"{form.milliseconds(latency.value)} ms at capacity"
    )

"""What a person sees of a recommendation: what instance types cost and do, and how sure it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from optimizer.configuration.serving_config import describe
from optimizer.fleet.instance_estimate import METRICS, Basis, InstanceEstimate, SourcedFigure
from optimizer.fleet.price_list import price_warning
from optimizer.fleet.recommendation import Recommendation
from optimizer.measurement.cost import Price

_COLUMNS = 4
"""Instance types beside each other."""

_MARKS: Mapping[Basis, str] = {
    "price": "p",
    "confirmed": "c",
    "measured": "m",
    "extrapolated": "x",
}
_LEGEND = (
    "c confirmed by measuring again, m measured, x extrapolated, p price; "
    "= worked out, as sure as the least sure that it is made of; - not seen"
)
_USERS = "utilisations and power are means over the whole load"

_FORMATS: Mapping[str, str] = {
    "FleetCostPerHour": ".3f",
    "FleetCostPerMillion": ".4g",
    "InitialInstanceCount": ".0f",
    "CostPerHour": ".4g",
    "CostPerInference": ".3g",
    "MaxInvocations": ",.0f",
    "ModelLatency": ".1f",
    "CpuUtilization": ".1f",
    "MemoryUtilization": ".1f",
    "GpuUtilization": ".1f",
    "GpuMemoryUtilization": ".1f",
    "GpuPower": ".0f",
    "ModelSetupTime": ".1f",
}


def show_recommendation(console: Console, found: Recommendation, *, by_users: bool = False) -> None:
    """Print what was found.

    Args:
        by_users: whether advanced jobs have measured it.
    """
    say = _Speaker(console)
    for first in range(0, len(found.estimates), _COLUMNS):
        console.print(_table(found, found.estimates[first : first + _COLUMNS]))
    if found.estimates:
        say(_LEGEND + (f"; {_USERS}" if by_users else ""), "dim")
        _say_best(say, found)
    for estimate in found.estimates:
        if estimate.extrapolated is not None:
            say(f"{estimate.price.instance_type} is extrapolated: {estimate.extrapolated}")
    for line in dict.fromkeys(
        f"{estimate.price.instance_type} ({estimate.study}): {warning}"
        for estimate in found.estimates
        for warning in estimate.warnings
    ):
        say(line, "yellow")
    for text in found.accepted:
        say(f"accepted: {text}", "yellow")
    for study, reason in found.nothing:
        say(f"{study}: nothing within the limits: {reason}", "yellow")
    for price in dict.fromkeys(estimate.price for estimate in found.estimates):
        _say_price(say, price)


class _Speaker:
    """Prints lines as they are."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, text: str, style: str | None = None) -> None:
        self._console.print(text, style=style, markup=False, highlight=False)


def _table(found: Recommendation, estimates: Sequence[InstanceEstimate]) -> Table:
    demand = found.demand
    headroom = f", {demand.headroom:.0%} kept free" if demand.headroom else ""
    table = Table(
        title=f"Instance types for {demand.requests_per_second:g} requests/s{headroom}",
        title_justify="left",
    )
    table.add_column("")
    for estimate in estimates:
        table.add_column(estimate.price.instance_type, overflow="fold")
    rows: dict[str, Callable[[InstanceEstimate], str]] = {
        "study": lambda estimate: estimate.study,
        "configuration": lambda estimate: describe(estimate.candidate.config),
    }
    for name, of in rows.items():
        table.add_row(name, *(of(estimate) for estimate in estimates))
    table.add_section()
    for name, unit in METRICS.items():
        if any(estimate.metrics[name] is not None for estimate in estimates):
            label = f"{name}, {unit}" if unit else name
            table.add_row(label, *(_cell(name, estimate) for estimate in estimates))
    return table


def _cell(name: str, estimate: InstanceEstimate) -> str:
    figure = estimate.metrics[name]
    if figure is None:
        return "-"
    percentile = f"p{estimate.latency_percentile:g} " if name == "ModelLatency" else ""
    return f"{percentile}{format(figure.value, _FORMATS[name])} {_mark(figure)}"


def _mark(figure: SourcedFigure) -> str:
    return ("=" if figure.worked_out else "") + _MARKS[figure.basis]


def _say_best(say: _Speaker, found: Recommendation) -> None:
    best, *others = found.estimates
    say(f"recommended: {_whole(best)}", "green")
    if best.extrapolated is not None:
        measured = found.best_measured
        least = f"; the best that was measured: {_whole(measured)}" if measured else ""
        say(f"that is extrapolated{least}", "yellow")
    for other in others[:1]:
        more = other.fleet_usd_per_hour / best.fleet_usd_per_hour - 1
        costs = f"{more:.0%} more" if round(more, 3) else "the same"
        say(f"the next best costs {costs}: {_whole(other)}")


def _whole(estimate: InstanceEstimate) -> str:
    cost, latency = estimate.candidate.score, estimate.metrics["ModelLatency"]
    assert latency is not None, "an estimate has a latency"
    return (
        f"{cost.replicas} x {estimate.price.instance_type} with "
        f"{describe(estimate.candidate.config)}; "
        f"${cost.fleet_usd_per_hour:.3f} an hour, ${cost.usd_per_million_at_demand:.4g} per "
        f"million, p{estimate.latency_percentile:g} {latency.value:.1f} ms at capacity"
    )


def _say_price(say: _Speaker, price: Price) -> None:
    say(
        f"price: {price.instance_type} ${price.usd_per_hour:g} an hour ({price.source}, "
        f"{price.as_of}); the whole instance is charged"
    )
    if (warning := price_warning(price, datetime.now(UTC).date())) is not None:
        say(warning, "yellow")

"""The page of what each latency limit costs: charts of cost and fleet, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from optimizer.analysis.latency_curve import Basis, LatencyCosts, PricedConfiguration
from optimizer.configuration.serving_config import describe
from optimizer.report import number_formats as form
from optimizer.report.latency_cost_tables import latency_cost_table, limits_text
from optimizer.report.page import COLOURS, page

_MARKS: Mapping[Basis, tuple[str, str]] = {
    "measured": (COLOURS[0], "circle"),
    "extrapolated": (COLOURS[5], "diamond-open"),
    "predicted": (COLOURS[2], "triangle-up-open"),
}
"""Colour and marker of how a figure is known."""

_TICKS_MS = [digit * 10**decade for decade in range(6) for digit in (1, 2, 5)]


def pareto_page(costs: LatencyCosts) -> str:
    """Return HTML in one file."""
    first = costs.shortest
    values = {
        "title": f"What each latency limit costs: {costs.study}",
        "percentile": first.limit.percentile,
        "own_ms": first.limit.latency_ms,
        "searched": limits_text(costs.searched_ms),
        "demand": costs.demand.requests_per_second,
        "others": [s for s in costs.streams if s.limit.latency_ms != first.limit.latency_ms],
        "shortest": first.name,
        "price": form.price_text(costs.price),
        "table": latency_cost_table(costs),
        "front": [(describe(config), limits_text(limits)) for config, limits in costs.front],
    }
    charts = {"per_million": per_million_chart(costs), "fleet": _chart(costs, _FLEET)}
    return page("pareto.html", values, charts)


def per_million_chart(costs: LatencyCosts) -> go.Figure:
    """Cost at capacity of the cheapest within each limit."""
    return _chart(costs, _PER_MILLION)


@dataclass(frozen=True)
class _Drawn:
    """One figure of an offer, and by how much it may be more and less."""

    title: str
    of: Callable[[PricedConfiguration], float]
    more: Callable[[PricedConfiguration], float]
    less: Callable[[PricedConfiguration], float]


def _over_high(offer: PricedConfiguration) -> float:
    """Share of the cost that is saved where the capacity is as high as it may be."""
    capacity = offer.capacity
    return 1 - capacity.per_second / capacity.high if capacity.high is not None else 0.0


_PER_MILLION = _Drawn(
    "$ per million at capacity (95 %)",
    lambda offer: offer.usd_per_million,
    lambda offer: offer.usd_per_million * (offer.capacity.per_second / offer.capacity.low - 1),
    lambda offer: offer.usd_per_million * _over_high(offer),
)
_FLEET = _Drawn(
    "Fleet for the demand, $ an hour",
    lambda offer: offer.score.fleet_usd_per_hour,
    lambda _: 0.0,
    lambda _: 0.0,
)


def _chart(costs: LatencyCosts, drawn: _Drawn) -> go.Figure:
    """Draw the cost as stairs: what meets a limit meets every longer one."""
    figure = go.Figure()
    cheapest = [(w.limit_ms, w.cheapest) for w in costs.curve if w.cheapest is not None]
    figure.add_scatter(
        x=[limit for limit, _ in cheapest],
        y=[drawn.of(offer) for _, offer in cheapest],
        mode="lines",
        line={"shape": "hv", "color": "#888888", "width": 1.5},
        hoverinfo="skip",
        showlegend=False,
    )
    predicted = [(w.limit_ms, w.predicted) for w in costs.curve if w.predicted is not None]
    for basis in _MARKS:
        points = [
            (limit, offer) for limit, offer in [*cheapest, *predicted] if offer.basis == basis
        ]
        if points:
            figure.add_trace(_marks(basis, points, drawn))
    own_ms = costs.shortest.limit.latency_ms
    figure.add_vline(x=own_ms, line_dash="dot", name="the study's own limit", showlegend=True)
    figure.update_xaxes(title="latency limit, ms", type="log", tickvals=_TICKS_MS)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(title=drawn.title, template="plotly_white", height=400)
    figure.update_layout(legend={"orientation": "h", "y": -0.25}, margin={"l": 50, "r": 10})
    return figure


def _marks(
    basis: Basis, points: Sequence[tuple[float, PricedConfiguration]], drawn: _Drawn
) -> go.Scatter:
    colour, symbol = _MARKS[basis]
    return go.Scatter(
        name=basis,
        x=[limit for limit, _ in points],
        y=[drawn.of(offer) for _, offer in points],
        error_y={
            "array": [drawn.more(offer) for _, offer in points],
            "arrayminus": [drawn.less(offer) for _, offer in points],
            "thickness": 1,
        },
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 11, "line": {"width": 2}},
        text=[describe(offer.config) for _, offer in points],
        hovertemplate="%{x:g} ms: %{y:$.4g}<br>%{text}",
        showlegend=True,
    )

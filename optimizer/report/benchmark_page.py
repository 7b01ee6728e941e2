"""Rows of the published table's kind, as its article's tables and charts would show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go

from optimizer.fleet.benchmark_table import BenchmarkRow
from optimizer.fleet.published_claims import PublishedClaim
from optimizer.measurement.cost import Demand, Price
from optimizer.report.benchmark_tables import benchmark_tables, cheapest_lines, claims_table
from optimizer.report.page import COLOURS, page


def benchmark_page(
    title: str,
    rows: Sequence[BenchmarkRow],
    prices: Mapping[str, Price],
    demand: Demand,
    limit_ms: float,
    claims: Sequence[PublishedClaim] = (),
    notes: Sequence[str] = (),
) -> str:
    """Return HTML in one file.

    Args:
        rows: priced for the demand.
        prices: of one instance, by instance type.
        claims: about the features, to be checked against the rows.
        notes: sentences below them.
    """
    values = {
        "title": title,
        "demand": demand.requests_per_second,
        "limit_ms": limit_ms,
        "winners": [line.text for line in cheapest_lines(rows, limit_ms)],
        "tables": benchmark_tables(rows, prices, demand, limit_ms),
        "claims": claims_table(claims) if claims else None,
        "notes": notes,
    }
    charts = {
        "cost": _bars(rows, "Cost of serving the demand, $ an hour", lambda r: r.usd_per_hour),
        "throughput": _bars(
            rows, "Invocations a minute of one instance", lambda r: r.invocations_per_minute
        ),
        "latency": _bars(rows, "Latency, ms", lambda r: r.latency_ms, limit_ms),
    }
    return page("benchmark.html", values, charts)


def _bars(
    rows: Sequence[BenchmarkRow],
    title: str,
    value: Callable[[BenchmarkRow], float],
    limit: float | None = None,
) -> go.Figure:
    """One group of bars for each instance type, one bar for each configuration."""
    figure = go.Figure()
    for name, colour in zip(dict.fromkeys(r.configuration for r in rows), cycle(COLOURS)):
        own = [row for row in rows if row.configuration == name]
        figure.add_bar(
            name=name,
            x=[row.instance_type for row in own],
            y=[value(row) for row in own],
            marker_color=colour,
        )
    if limit is not None:
        figure.add_hline(y=limit, line_dash="dash", annotation_text=f"limit, {limit:.0f} ms")
    figure.update_layout(title=title, barmode="group", template="plotly_white", height=400)
    figure.update_layout(legend={"orientation": "h", "y": -0.15}, margin={"l": 50, "r": 10})
    return figure

"""Rows of the published table's kind, as its article's tables and charts would show them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import plotly.graph_objects as go

from optimizer.fleet.benchmark_table import BenchmarkRow, cheapest
from optimizer.fleet.published_claims import PublishedClaim
from optimizer.measurement.cost import Demand, Price
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
    """HTML in one file.

    Args:
        rows: priced for the demand.
        prices: of one instance, by instance type.
        claims: said of the features, to be held against the rows.
        notes: sentences below them.
    """
    types = list(dict.fromkeys(row.instance_type for row in rows))
    within = cheapest(rows, limit_ms)
    winners = {"without a limit": cheapest(rows), f"within {limit_ms:.0f} ms": within}
    values = {
        "title": title,
        "demand": demand.requests_per_second,
        "limit_ms": limit_ms,
        "winners": {
            said: _cells(row, demand, limit_ms) if row is not None else None
            for said, row in winners.items()
        },
        "prices": {name: _price(prices[name]) for name in types},
        "tables": {
            name: [
                _cells(row, demand, limit_ms) | {"best": row == within}
                for row in rows
                if row.instance_type == name
            ]
            for name in types
        },
        "claims": [_claim(claim) for claim in claims],
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


def _price(price: Price) -> str:
    return f"${price.usd_per_hour} an hour each ({price.source}, {price.as_of})"


def _cells(row: BenchmarkRow, demand: Demand, limit_ms: float) -> dict[str, Any]:
    per_million = row.usd_per_million(demand)
    return {
        "name": row.configuration,
        "type": row.instance_type,
        "runtime": row.runtime,
        "batching": "on" if row.batching else "off",
        "instances": row.instances,
        "rate": f"{row.invocations_per_minute:,.0f}",
        "latency": f"{row.latency_ms:.0f}",
        "missed": row.latency_ms > limit_ms,
        "replicas": row.replicas,
        "cost": f"${row.usd_per_hour:.3f}",
        "per_million": f"${per_million:.4f}" if per_million < 1 else f"${per_million:.2f}",
    }


def _claim(claim: PublishedClaim) -> dict[str, Any]:
    pairs = len(claim.pairs)
    return {
        "said": claim.text,
        "ratios": f"{claim.ratios[0]:.2f} to {claim.ratios[-1]:.2f}",
        "median": f"{claim.median:.2f}",
        "borne_out": f"{claim.supporting_pairs} of {pairs}",
        "missed": claim.supporting_pairs < pairs,
    }


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

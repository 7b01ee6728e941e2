"""The published benchmark as its article's tables and charts would show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import plotly.graph_objects as go

from optimizer.cost import Price
from optimizer.fleet.published import (
    PUBLISHED_DEMAND,
    PUBLISHED_LIMIT_MS,
    Claim,
    PublishedRow,
    cheapest,
    claims,
    notes,
)
from optimizer.report.page import COLOURS, page


def published_page(rows: Sequence[PublishedRow], prices: Mapping[str, Price]) -> str:
    """HTML in one file."""
    types = list(dict.fromkeys(row.instance_type for row in rows))
    within = cheapest(rows, prices, PUBLISHED_LIMIT_MS)
    users = [row.per_second * row.latency_ms / 1e3 for row in rows]
    values = {
        "demand": PUBLISHED_DEMAND.requests_per_second,
        "limit_ms": PUBLISHED_LIMIT_MS,
        "cheapest": _cells(cheapest(rows, prices), prices),
        "within": _cells(within, prices),
        "users": f"{min(users):.0f} to {max(users):.0f}",
        "tables": {
            name: [
                _cells(row, prices) | {"best": row == within}
                for row in rows
                if row.instance_type == name
            ]
            for name in types
        },
        "claims": [_claim(claim) for claim in claims(rows)],
        "notes": notes(rows),
    }
    charts = {
        "cost": _bars(rows, "Cost of serving the demand, $ an hour", lambda r: r.usd_per_hour),
        "throughput": _bars(
            rows, "Invocations a minute of one instance", lambda r: r.invocations_per_minute
        ),
        "latency": _bars(rows, "Model latency, ms", lambda r: r.latency_ms, PUBLISHED_LIMIT_MS),
    }
    return page("published.html", values, charts)


def _cells(row: PublishedRow, prices: Mapping[str, Price]) -> dict[str, Any]:
    price = prices[row.instance_type]
    found = row.score(price)
    return {
        "name": row.configuration,
        "runtime": row.runtime,
        "batching": "on" if row.batching else "off",
        "instances": row.instances,
        "rate": f"{row.invocations_per_minute:,.0f}",
        "latency": f"{row.latency_ms:.0f}",
        "missed": not row.meets_limit,
        "replicas": found.replicas,
        "cost": f"${found.fleet_usd_per_hour:.3f}",
        "per_million": f"${found.usd_per_million_at_demand:.2f}",
        "price": f"{row.instance_type} at ${price.usd_per_hour} ({price.source}, {price.as_of})",
    }


def _claim(claim: Claim) -> dict[str, Any]:
    pairs = len(claim.pairs)
    return {
        "said": claim.said,
        "ratios": f"{claim.ratios[0]:.2f} to {claim.ratios[-1]:.2f}",
        "median": f"{median(claim.ratios):.2f}",
        "borne_out": f"{claim.borne_out} of {pairs}",
        "missed": claim.borne_out < pairs,
    }


def _bars(
    rows: Sequence[PublishedRow],
    title: str,
    value: Callable[[PublishedRow], float],
    limit: float | None = None,
) -> go.Figure:
    """One group of bars for each instance type, one bar for each configuration."""
    figure = go.Figure()
    for name, colour in zip(dict.fromkeys(r.configuration for r in rows), COLOURS, strict=True):
        own = [row for row in rows if row.configuration == name]
        figure.add_bar(
            name=name,
            x=[row.instance_type for row in own],
            y=[value(row) for row in own],
            marker_color=colour,
        )
    if limit is not None:
        figure.add_hline(y=limit, line_dash="dash", annotation_text=f"limit, {limit:.0f} ms")
    figure.update_layout(title=title, barmode="group", template="plotly_white", height=380)
    return figure

"""Advice from production's counters as a page in one file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import cycle

import plotly.graph_objects as go

from optimizer.measurement.counters import CounterInterval, by_replica, requests_per_second
from optimizer.report.page import COLOURS, page
from optimizer.report.table import Part, Table

_MOST_POINTS = 600
"""Of a replica's line; more intervals are joined."""


def advice_page(model: str, parts: Iterable[Part], intervals: Sequence[CounterInterval]) -> str:
    """Return HTML in one file: the parts as the terminal shows them, and the rate over time."""
    values = {
        "title": f"{model} in production",
        "parts": [each.for_page if isinstance(each, Table) else each for each in parts],
    }
    return page("advice.html", values, {"rate": _rate(intervals)})


def _rate(intervals: Sequence[CounterInterval]) -> go.Figure:
    """Draw the requests that each replica answered, over time."""
    figure = go.Figure()
    for own, colour in zip(by_replica(intervals), cycle(COLOURS)):
        width = -(-len(own) // _MOST_POINTS)
        joined = [own[at : at + width] for at in range(0, len(own), width)]
        figure.add_scatter(
            x=[each[0].begin_seconds / 60 for each in joined],
            y=[requests_per_second(each) for each in joined],
            name=own[0].replica,
            line={"color": colour, "shape": "hv", "width": 1.5},
        )
    figure.update_layout(
        title="Requests answered, requests/s",
        xaxis_title="minutes",
        template="plotly_white",
        height=320,
        margin={"l": 55, "r": 10, "t": 50},
        legend={"orientation": "h", "y": -0.3},
        showlegend=True,
    )
    figure.update_yaxes(rangemode="tozero")
    return figure

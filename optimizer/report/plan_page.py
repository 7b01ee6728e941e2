"""A planned fleet as a page in one file."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optimizer.fleet.planning.fleet_plan import Plan
from optimizer.report.page import COLOURS, page
from optimizer.report.plan_tables import headline, hours, tables

_DASHES = ("solid", "dash", "dot", "dashdot", "longdash")


def plan_page(plan: Plan, described: Mapping[str, str]) -> str:
    """Return HTML in one file.

    Args:
        described: configurations in words, by the name of the instance's study.
    """
    values = {
        "title": f"A fleet for {plan.inputs.curve.name}",
        "headline": headline(plan),
        "tables": tables(plan, described),
        "hours": hours(plan),
    }
    return page("plan.html", values, {"over_time": _over_time(plan), "response": _response(plan)})


def _over_time(plan: Plan) -> go.Figure:
    """Demand above, instances below, over the demand's period."""
    curve = plan.inputs.curve
    figure = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        subplot_titles=("Demand, requests/s", "Instances that are charged"),
    )
    at = np.arange(len(curve.per_second)) * curve.step_seconds / 3600
    figure.add_scatter(
        x=at, y=curve.rates, name="demand", line={"color": "#000000", "width": 1.5}, row=1, col=1
    )
    policies = plan.all_policies
    for policy, colour, dash in zip(policies, cycle(COLOURS), cycle(_DASHES)):
        step = curve.seconds / len(policy.charged) / 3600
        figure.add_scatter(
            x=np.arange(len(policy.charged)) * step,
            y=policy.charged,
            name=policy.name,
            line={"color": colour, "shape": "hv", "dash": dash, "width": 2},
            row=2,
            col=1,
        )
    figure.update_xaxes(title_text="hours", row=2, col=1)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(template="plotly_white", height=620, margin={"l": 55, "r": 10, "t": 40})
    figure.update_layout(legend={"orientation": "h", "y": -0.12})
    return figure


def _response(plan: Plan) -> go.Figure:
    """Latency of one instance against its load, relative to the limit."""
    figure = go.Figure()
    for member, colour in zip(plan.fleet.members, cycle(COLOURS)):
        response = member.response
        figure.add_scatter(
            x=response.per_second,
            y=response.limit_overshoot + 1,
            name=f"{member.instance.price.instance_type} ({member.instance.name})",
            mode="lines+markers",
            line={"color": colour},
        )
        figure.add_vline(
            x=member.capacity_per_second, line_dash="dot", line_color=colour,
        )  # fmt: skip
    figure.add_hline(y=1.0, line_dash="dash", annotation_text="limit")
    figure.update_layout(
        title="One instance: latency over limit against its load; dotted, what it is counted for",
        xaxis_title="requests/s of one instance",
        yaxis={"type": "log", "title": "latency / limit", "dtick": 1},
        template="plotly_white",
        height=420,
        margin={"l": 55, "r": 10},
        legend={"orientation": "h", "y": -0.25},
        showlegend=True,
    )
    return figure

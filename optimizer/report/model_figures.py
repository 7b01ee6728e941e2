"""Charts of predictions against measurements, and of the effects of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optimizer.analysis.effects import Effect, Effects
from optimizer.report.page import COLOURS, label_margin_px, wrapped_label

_SHOWN = 6
"""Parameters whose values are drawn, those that matter most."""

_ACROSS = 2


@dataclass(frozen=True)
class Predicted:
    """One configuration.

    Attributes:
        predicted, measured: requests a second within the limits.
        low, high: of what was measured.
    """

    name: str
    predicted: float
    measured: float
    low: float
    high: float | None


def median_error(pairs: Sequence[Predicted]) -> float:
    """Of the predictions, relative to what was measured. At least one pair."""
    return float(np.median([abs(each.predicted / each.measured - 1) for each in pairs]))


def predicted_against_measured(pairs: Sequence[Predicted]) -> go.Figure:
    """Draw predicted against measured capacities on logarithmic axes."""
    figure = go.Figure()
    values = [value for each in pairs for value in (each.predicted, each.measured)]
    ends = [0.8 * min(values), 1.25 * max(values)]
    figure.add_scatter(
        x=ends, y=ends, mode="lines", name="equal", line={"color": "#666666", "dash": "dash"}
    )
    figure.add_scatter(
        x=[each.measured for each in pairs],
        y=[each.predicted for each in pairs],
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [(each.high or each.measured) - each.measured for each in pairs],
            "arrayminus": [each.measured - each.low for each in pairs],
            "color": "#999999",
        },
        mode="markers",
        name="configurations",
        text=[each.name for each in pairs],
        marker={"color": COLOURS[0], "size": 8},
    )
    figure.update_layout(
        title="Capacity, requests/s: predicted before it was measured, and measured",
        template="plotly_white",
        height=420,
        margin={"l": 60, "r": 10},
        legend={"orientation": "h", "y": -0.2},
    )
    figure.update_xaxes(title="measured", type="log")
    figure.update_yaxes(title="predicted", type="log")
    return figure


def importances(effects: Effects) -> go.Figure:
    """Draw the shares of the variance of parameters and of pairs."""
    named = [(effect.parameter, effect.share, 0) for effect in effects.main]
    named += [
        (wrapped_label(" x ".join(each.parameters)), each.share, 1) for each in effects.interactions
    ]
    named.sort(key=lambda each: each[1])
    figure = go.Figure()
    for kind, (name, pattern) in enumerate((("alone", ""), ("together", "/"))):
        own = [each for each in named if each[2] == kind]
        figure.add_bar(
            y=[each[0] for each in own],
            x=[each[1] for each in own],
            name=name,
            orientation="h",
            marker={"color": COLOURS[kind], "pattern": {"shape": pattern}},
        )
    figure.update_layout(
        title="Parameter importance: share of the variance of the cost's logarithm",
        template="plotly_white",
        height=120 + 34 * len(named),
        margin={"l": label_margin_px(name for name, _, _ in named), "r": 10},
        legend={"orientation": "h", "y": -0.15},
    )
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(categoryorder="array", categoryarray=[each[0] for each in named])
    return figure


def main_effects(effects: Effects) -> go.Figure:
    """Draw the cost by each value of the most important parameters: mean and cheapest."""
    shown = effects.main[:_SHOWN]
    rows = math.ceil(len(shown) / _ACROSS)
    figure = make_subplots(
        rows=rows,
        cols=_ACROSS,
        shared_yaxes="all",
        subplot_titles=[effect.parameter for effect in shown],
        vertical_spacing=0.28 / rows,
    )
    for at, effect in enumerate(shown):
        _draw(figure, effect, at // _ACROSS + 1, at % _ACROSS + 1)
    figure.update_layout(
        title="$ per million by parameter value: mean and cheapest configuration",
        template="plotly_white",
        height=90 + 260 * rows,
        margin={"l": 60, "r": 10},
        legend={"orientation": "h", "y": -0.3 / rows},
    )
    figure.update_xaxes(type="category")
    figure.update_yaxes(type="log", tickformat="$.3~g", dtick="D2")
    return figure


def _draw(figure: go.Figure, effect: Effect, row: int, column: int) -> None:
    values = [level.value for level in effect.levels]
    first = (row, column) == (1, 1)
    for name, costs, colour, symbol in (
        ("mean", [x.mean_usd_per_million for x in effect.levels], COLOURS[0], "circle"),
        ("cheapest", [x.least_usd_per_million for x in effect.levels], COLOURS[5], "diamond"),
    ):
        figure.add_scatter(
            x=values,
            y=costs,
            name=name,
            mode="lines+markers",
            line={"color": colour},
            marker={"symbol": symbol, "size": 8},
            showlegend=first,
            legendgroup=name,
            row=row,
            col=column,
        )

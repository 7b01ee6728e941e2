"""Charts of a study: its course, cost against latency, latency against load.

Each is computed first and drawn afterwards. Colours are backed by markers or dashes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from typing import TypeAlias

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.trial_record import Outcome, TrialRecord, outcome_name
from optimizer.report.page import COLOURS
from optimizer.study.history import in_order_of_tells

Figure: TypeAlias = go.Figure
"""What is drawn here, for whoever hands it on and draws nothing."""

_OUTCOMES: Mapping[Outcome, tuple[str, str]] = {
    "ok": (COLOURS[2], "circle"),
    "infeasible": (COLOURS[1], "x"),
    "bounded": (COLOURS[4], "triangle-down"),
    "failed": (COLOURS[5], "square"),
}
"""Colour and marker of each."""

_MARKERS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")
_DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
_SHOWN = 5
"""Curves of latency against load beside the baseline's."""


@dataclass(frozen=True)
class HistoryPoint:
    """One trial in the course of a study.

    Attributes:
        measured_seconds: load tests of all trials up to it and with it.
        usd_per_million: at its capacity; None where it has no cost.
        best_usd_per_million: the least so far, None while there is none.
    """

    number: int
    measured_seconds: float
    outcome: Outcome
    usd_per_million: float | None
    best_usd_per_million: float | None
    described: str
    reason: str


def history_of(records: Sequence[TrialRecord]) -> tuple[HistoryPoint, ...]:
    """Return the trials in the order in which they ended, each with the best up to it."""
    points, best, seconds = [], None, 0.0
    for record in in_order_of_tells(records):
        cost = record.score.usd_per_million_at_capacity if record.score is not None else None
        seconds += record.seconds.measuring
        if cost is not None:
            best = cost if best is None else min(best, cost)
        points.append(
            HistoryPoint(
                record.number,
                seconds,
                record.outcome,
                cost,
                best,
                describe(record.config),
                record.reason,
            )
        )
    return tuple(points)


def history_figure(records: Sequence[TrialRecord]) -> Figure:
    """Cost of each trial at its capacity, and the least so far; below, the trials without a cost.

    Over the time that was spent on load tests.

    Args:
        records: of the search.
    """
    points = history_of(records)
    below = any(point.usd_per_million is None for point in points)
    figure = make_subplots(
        rows=1 + below,
        cols=1,
        shared_xaxes=True,
        row_heights=(0.82, 0.18) if below else None,
        vertical_spacing=0.06,
    )
    best = [point for point in points if point.best_usd_per_million is not None]
    figure.add_scatter(
        x=_rounded(point.measured_seconds for point in best),
        y=_rounded(point.best_usd_per_million or 0.0 for point in best),
        name="lowest so far",
        mode="lines",
        line={"shape": "hv", "color": COLOURS[0], "width": 2},
        hoverinfo="skip",
        row=1,
        col=1,
    )
    for outcome in _OUTCOMES:
        own = [point for point in points if point.outcome == outcome]
        _add_trials(figure, outcome, [p for p in own if p.usd_per_million is not None], row=1)
        _add_trials(figure, outcome, [p for p in own if p.usd_per_million is None], row=2)
    figure.update_yaxes(title_text="$ per million at capacity", rangemode="tozero", row=1, col=1)
    if below:
        strip = {"showticklabels": False, "range": [-1, 1], "zeroline": False}
        figure.update_yaxes(title_text="no cost", row=2, col=1, **strip)
    figure.update_xaxes(title_text="seconds of load tests", row=1 + below, col=1)
    return _laid_out(figure, "Course of the study", 480)


def _rounded(values: Iterable[float]) -> list[float]:
    """Return numbers in the digits that a figure shows, which keeps pages of many trials small."""
    return [float(f"{value:.6g}") for value in values]


def _add_trials(figure: Figure, outcome: Outcome, points: Sequence[HistoryPoint], row: int) -> None:
    if not points:
        return
    colour, symbol = _OUTCOMES[outcome]
    cost = "$%{y:.4f}" if row == 1 else outcome_name(outcome)
    figure.add_scatter(
        x=_rounded(point.measured_seconds for point in points),
        y=_rounded(point.usd_per_million or 0.0 for point in points),
        name=outcome_name(outcome),
        mode="markers",
        marker={"color": colour, "symbol": symbol, "size": 10},
        text=[_hover(point) for point in points],
        hovertemplate=f"%{{x:.0f}} s: {cost}<br>%{{text}}<extra></extra>",
        row=row,
        col=1,
    )


def _hover(point: HistoryPoint) -> str:
    # The message of a server may look like markup.
    return f"trial {point.number}, {point.described}<br>{escape(point.reason)}"


@dataclass(frozen=True)
class CostPoint:
    """A trial that met the limits.

    Attributes:
        latency_ms: at the limit's percentile, of the stream that is nearest to its limit.
        artifact: runtime and precision of every model.
    """

    number: int
    artifact: str
    latency_ms: float
    limit_ms: float
    percentile: float
    usd_per_million: float
    config: ServingConfig


def costs_and_latencies(records: Sequence[TrialRecord]) -> tuple[CostPoint, ...]:
    """Cost at capacity beside the latency there; trials without a level near it have none."""
    return tuple(point for record in records for point in _cost_point(record))


def _cost_point(record: TrialRecord) -> Iterator[CostPoint]:
    level = record.measurement.level_at_capacity if record.measurement is not None else None
    if level is None or record.score is None:
        return
    worst = level.worst
    yield CostPoint(
        number=record.number,
        artifact=_artifact(record.config),
        latency_ms=worst.latency_ms(worst.limit_percentile),
        limit_ms=worst.limit_ms,
        percentile=worst.limit_percentile,
        usd_per_million=record.score.usd_per_million_at_capacity,
        config=record.config,
    )


def _artifact(config: ServingConfig) -> str:
    own = (f"{model.artifact.runtime} {model.artifact.precision}" for model in config.models)
    return " + ".join(own)


def cost_latency_figure(
    records: Sequence[TrialRecord], best: ServingConfig | None = None
) -> Figure:
    """Draw the cost of each trial against its latency, both at its capacity.

    Args:
        records: of the search; those that did not meet the limits are left out.
        best: is ringed.
    """
    points = costs_and_latencies(records)
    figure = go.Figure()
    artifacts = sorted({point.artifact for point in points})
    for artifact, colour, symbol in zip(artifacts, cycle(COLOURS), cycle(_MARKERS)):
        own = [point for point in points if point.artifact == artifact]
        figure.add_scatter(
            x=_rounded(point.latency_ms for point in own),
            y=_rounded(point.usd_per_million for point in own),
            name=artifact,
            mode="markers",
            marker={"color": colour, "symbol": symbol, "size": 10},
            text=[f"trial {point.number}: {describe(point.config)}" for point in own],
            hovertemplate="%{text}<br>%{x:.1f} ms, $%{y:.4f}<extra></extra>",
        )
    ringed = [point for point in points if point.config == best]
    if ringed:
        figure.add_scatter(
            x=[point.latency_ms for point in ringed],
            y=[point.usd_per_million for point in ringed],
            name="best",
            mode="markers",
            marker={"color": "#000000", "symbol": "circle-open", "size": 20},
            hoverinfo="skip",
        )
    for limit_ms in sorted({point.limit_ms for point in points}):
        figure.add_vline(x=limit_ms, line_dash="dash", annotation_text=f"limit, {limit_ms:g} ms")
    percentile = _percentile(point.percentile for point in points)
    figure.update_xaxes(title_text=f"{percentile} at capacity, ms", rangemode="tozero")
    figure.update_yaxes(title_text="$ per million at capacity", rangemode="tozero")
    return _laid_out(figure, "Cost and latency of the trials that met the limits", 440)


def _percentile(percentiles: Iterable[float]) -> str:
    found = {f"p{percentile:g}" for percentile in percentiles}
    return found.pop() if len(found) == 1 else "latency at the limit's percentile"


@dataclass(frozen=True)
class LoadCurve:
    """Latency of one stream of one configuration over its load.

    Attributes:
        latency_ms: at `percentile`, from when requests were due; in the order of load.
        low_ms, high_ms: its interval at `CONFIDENCE`; None where there were too few requests.
    """

    name: str
    stream: str
    percentile: float
    limit_ms: float
    offered_per_second: tuple[float, ...]
    latency_ms: tuple[float, ...]
    low_ms: tuple[float, ...]
    high_ms: tuple[float | None, ...]


def load_curves(named: Mapping[str, Sequence[LoadLevel]]) -> tuple[LoadCurve, ...]:
    """One curve for each stream of each entry: its levels under independent arrivals.

    Levels in which the client was late say nothing of the server and are left out.
    """
    return tuple(
        curve
        for name, levels in named.items()
        for curve in _curves(
            name, [x for x in levels if x.kind == "open_loop" and x.client.kept_up]
        )
    )


def _curves(name: str, levels: Sequence[LoadLevel]) -> Iterator[LoadCurve]:
    for stream in dict.fromkeys(stream.name for level in levels for stream in level.streams):
        own = sorted(
            (s for level in levels for s in level.streams if s.name == stream),
            key=lambda s: s.offered_per_second,
        )
        found = [s.latency(s.limit_percentile) for s in own]
        yield LoadCurve(
            name=name,
            stream=stream,
            percentile=own[0].limit_percentile,
            limit_ms=own[0].limit_ms,
            offered_per_second=tuple(s.offered_per_second for s in own),
            latency_ms=tuple(each.value_ms for each in found),
            low_ms=tuple(each.low_ms for each in found),
            high_ms=tuple(each.high_ms for each in found),
        )


def levels_by_configuration(
    records: Sequence[TrialRecord], first: Sequence[ServingConfig], most: int = _SHOWN
) -> dict[str, tuple[LoadLevel, ...]]:
    """All levels of those configurations that a reader wants to see, by their description.

    Args:
        records: of the search, and of whatever else measured the same configurations.
        first: are there in any case, in this order, where they were measured; then the cheapest.
        most: configurations beside `first`.
    """
    priced = [(r.score.usd_per_million_at_capacity, r.number, r.config) for r in records if r.score]
    cheapest = [config for _, _, config in sorted(priced, key=lambda item: item[:2])]
    others = [config for config in dict.fromkeys(cheapest) if config not in first]
    return {
        describe(config): levels
        for config in (*dict.fromkeys(first), *others[:most])
        if (levels := tuple(_levels_of(records, config)))
    }


def _levels_of(records: Sequence[TrialRecord], config: ServingConfig) -> Iterator[LoadLevel]:
    for record in records:
        if record.config == config and record.measurement is not None:
            yield from record.measurement.levels


PredictedCurve: TypeAlias = Sequence[tuple[float, float]]
"""(offered requests/s, latency in ms at the limit's percentile), ascending."""


def load_latency_figure(
    named: Mapping[str, Sequence[LoadLevel]],
    predicted: Mapping[tuple[str, str], PredictedCurve] | None = None,
) -> Figure:
    """Latency over offered load, with intervals, beside the limit.

    Args:
        named: levels by the name of what was measured, see `levels_by_configuration`.
        predicted: by name and stream; drawn as a line. Without one a line joins the levels.
    """
    curves = load_curves(named)
    several = len({curve.stream for curve in curves}) > 1
    figure = go.Figure()
    styled = zip(curves, cycle(COLOURS), cycle(_DASHES), cycle(_MARKERS))
    for curve, colour, dash, symbol in styled:
        line = {"color": colour, "dash": dash, "width": 2}
        foreseen = (predicted or {}).get((curve.name, curve.stream), ())
        if foreseen:
            figure.add_scatter(
                x=[offered for offered, _ in foreseen],
                y=[latency_ms for _, latency_ms in foreseen],
                mode="lines",
                line=line,
                hoverinfo="skip",
                showlegend=False,
                legendgroup=f"{curve.stream} {curve.name}",
            )
        figure.add_scatter(
            x=curve.offered_per_second,
            y=curve.latency_ms,
            error_y=_intervals(curve),
            name=f"{curve.stream}: {curve.name}" if several else curve.name,
            mode="markers" if foreseen else "lines+markers",
            line=line,
            legendgroup=f"{curve.stream} {curve.name}",
            marker={"color": colour, "symbol": symbol, "size": 8},
            hovertemplate="%{x:.1f}/s: %{y:.1f} ms<extra>%{fullData.name}</extra>",
        )
    for limit_ms in sorted({curve.limit_ms for curve in curves}):
        # An annotation's place is wrong on a logarithmic axis.
        name = f"limit, {limit_ms:g} ms"
        figure.add_hline(y=limit_ms, line_dash="dash", name=name, showlegend=True)
    percentile = _percentile(curve.percentile for curve in curves)
    figure.update_xaxes(title_text="offered requests/s of one replica", rangemode="tozero")
    figure.update_yaxes(title_text=f"{percentile}, ms", type="log")
    return _laid_out(figure, "Latency against load", 480)


def _intervals(curve: LoadCurve) -> dict[str, object]:
    """Error bars; none upwards where the upper end is unknown."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [
            high - value if high is not None else 0.0
            for high, value in zip(curve.high_ms, curve.latency_ms, strict=True)
        ],
        "arrayminus": [
            value - low for low, value in zip(curve.low_ms, curve.latency_ms, strict=True)
        ],
        "thickness": 1,
        "width": 3,
    }


def _laid_out(figure: go.Figure, title: str, height: int) -> Figure:
    figure.update_layout(
        title=title,
        template="plotly_white",
        height=height,
        margin={"l": 60, "r": 10, "t": 50},
        legend={"orientation": "h", "y": -0.2},
        showlegend=True,
    )
    return figure

"""Where a request's time goes, and in which batches it is executed, drawn for several levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optimizer.measurement import LoadLevel
from optimizer.report.page import COLOURS

PARTS = ("queue", "input", "compute", "output", "network")
_PATTERNS = ("", "/", "x", ".", "-")


def times_ms(level: LoadLevel) -> Mapping[str, float]:
    """Mean time of a request in each of `PARTS`, over the models that were asked."""
    requests = sum(split.requests for split in level.server)

    def mean(values: Sequence[float]) -> float:
        weighted = zip(level.server, values, strict=True)
        return sum(split.requests * ms for split, ms in weighted) / requests if requests else 0.0

    return {
        "queue": mean([split.queue_ms for split in level.server]),
        "input": mean([split.compute_input_ms for split in level.server]),
        "compute": mean([split.compute_infer_ms for split in level.server]),
        "output": mean([split.compute_output_ms for split in level.server]),
        "network": level.network_ms or 0.0,
    }


def batch_shares(level: LoadLevel) -> Mapping[int, float]:
    """Share of the inferences that are executed in each batch size, ascending."""
    inferences: dict[int, int] = {}
    for split in level.server:
        for point in split.batches:
            size = point.batch_size
            inferences[size] = inferences.get(size, 0) + point.inferences
    total = sum(inferences.values())
    return {size: count / total for size, count in sorted(inferences.items())} if total else {}


def time_split(levels: Mapping[str, LoadLevel]) -> go.Figure:
    """One stacked bar for each level, by name."""
    figure = go.Figure()
    split = {name: times_ms(level) for name, level in levels.items()}
    for part, colour, pattern in zip(PARTS, cycle(COLOURS), _PATTERNS, strict=False):
        figure.add_bar(
            name=part,
            y=list(split),
            x=[times[part] for times in split.values()],
            orientation="h",
            marker={
                "color": colour,
                "pattern": {"shape": pattern, "fgcolor": "#ffffff", "size": 6},
            },
        )
    figure.update_layout(
        title="Where a request's time goes at the capacity, mean ms",
        barmode="stack",
        template="plotly_white",
        height=160 + 60 * len(levels),
        margin={"l": 10, "r": 10},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_yaxes(automargin=True, autorange="reversed")
    return figure


def batch_histogram(levels: Mapping[str, LoadLevel]) -> go.Figure:
    """Shares of the inferences by batch size, one row for each level that has any."""
    shares = {name: found for name, level in levels.items() if (found := batch_shares(level))}
    figure = make_subplots(
        rows=max(1, len(shares)),
        cols=1,
        shared_xaxes=True,
        subplot_titles=list(shares),
        vertical_spacing=0.3 / max(1, len(shares)),
    )
    for row, (found, colour) in enumerate(zip(shares.values(), cycle(COLOURS), strict=False), 1):
        figure.add_bar(x=list(found), y=list(found.values()), marker_color=colour, row=row, col=1)
    figure.update_layout(
        title="Inferences by the batch that they were executed in, at the capacity",
        template="plotly_white",
        height=100 + 130 * len(shares),
        margin={"l": 50, "r": 10},
        showlegend=False,
    )
    figure.update_annotations(font_size=12)
    figure.update_xaxes(title="batch size", row=max(1, len(shares)), col=1)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    return figure

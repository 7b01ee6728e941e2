"""Charts of where a request's time goes, and of the batches that are executed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from optimizer.measurement.host_share import HostTiming, model_ms
from optimizer.measurement.level import LoadLevel, ServerSplit
from optimizer.report.page import COLOURS, label_margin_px, wrapped_label

_PATTERNS = ("", "/", "x", ".", "-", "+")

_LINE_PX = 17
"""Height of a line of a label."""

HOST = "Python host"
"""The part that is the Python backend's own work on requests."""

Timings = Mapping[str, Sequence[HostTiming]]
"""By model, how long its artefact took when it was prepared."""


def times_ms(level: LoadLevel, timings: Timings) -> Mapping[str, float]:
    """Return a request's mean time by part, over the models that execute it.

    Where Triton's Python backend hosts a model that was timed without it, `HOST` is what it adds to
    the model's own "compute".
    """
    requests, executed = level.requests_received, level.executed
    model = [model_ms(split, timings.get(split.model, ())) for split in executed]
    infer = [split.compute_infer_ms - split.waiting_ms for split in executed]
    compute = [ms if own is None else own for ms, own in zip(infer, model, strict=True)]
    host = [ms - own for ms, own in zip(infer, compute, strict=True)]

    def mean(values: Sequence[float]) -> float:
        weighted = zip(executed, values, strict=True)
        return sum(split.requests * ms for split, ms in weighted) / requests if requests else 0.0

    cache_ms = mean([split.cache_ms for split in executed])
    cache = {"cache": cache_ms} if cache_ms else {}
    host_ms = {HOST: mean(host)} if any(own is not None for own in model) else {}
    return {
        **cache,
        "queue": mean([split.queue_ms for split in executed]),
        "input": mean([split.compute_input_ms for split in executed]),
        "compute": mean(compute),
        **host_ms,
        "output": mean([split.compute_output_ms for split in executed]),
        "network": level.network_ms or 0.0,
    }


def batch_shares(splits: Sequence[ServerSplit]) -> Mapping[int, float]:
    """Share of the inferences that are executed in each batch size, ascending."""
    inferences: dict[int, int] = {}
    for split in splits:
        for point in split.batches:
            size = point.batch_size
            inferences[size] = inferences.get(size, 0) + point.inferences
    total = sum(inferences.values())
    return {size: count / total for size, count in sorted(inferences.items())} if total else {}


def parts_of(split: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
    """Return the parts of all levels, in the order of a request's way."""
    return max((tuple(times) for times in split.values()), key=len, default=())


def time_split(split: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Draw one stacked bar for each level, by name; `split` is what `times_ms` returns of each."""
    labels = [wrapped_label(name) for name in split]
    figure = go.Figure()
    for part, colour, pattern in zip(
        parts_of(split), cycle(COLOURS), cycle(_PATTERNS), strict=False
    ):
        figure.add_bar(
            name=part,
            y=labels,
            x=[times.get(part, 0.0) for times in split.values()],
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
        height=160 + max(60, _LINE_PX * _most_lines(labels)) * len(split),
        margin={"l": label_margin_px(labels), "r": 10},
        legend={"orientation": "h", "y": -0.25},
    )
    figure.update_yaxes(autorange="reversed")
    return figure


def _most_lines(labels: Sequence[str]) -> int:
    return max((label.count("<br>") + 1 for label in labels), default=1)


def batch_histogram(splits: Mapping[str, Sequence[ServerSplit]]) -> go.Figure:
    """Shares of the inferences by batch size, one row for each name that has any."""
    shares = {name: share for name, own in splits.items() if (share := batch_shares(own))}
    figure = make_subplots(
        rows=max(1, len(shares)),
        cols=1,
        shared_xaxes=True,
        subplot_titles=list(shares),
        vertical_spacing=0.3 / max(1, len(shares)),
    )
    for row, (share, colour) in enumerate(zip(shares.values(), cycle(COLOURS), strict=False), 1):
        figure.add_bar(x=list(share), y=list(share.values()), marker_color=colour, row=row, col=1)
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

"""A Grafana dashboard with the measured capacity and the limits as thresholds."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import alerts, expressions
from optimizer.export.monitoring.expressions import selected
from optimizer.export.monitoring.server_states import NEAR_CAPACITY

SCHEMA_VERSION = 39
"""Grafana 11's."""

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_INSTANCE = 'instance=~"$instance"'
_PANEL_WIDTH, _PANEL_HEIGHT, _PANELS_PER_ROW = 8, 8, 3

_Steps = list[tuple[str, float]]
"""Colours, and the values from which on they apply, ascending."""


def dashboard(deployment: Deployment) -> str:
    """Return the dashboard as JSON, ready to be imported."""
    blocks = [[_row(f"{m.name}: {_measured_text(m)}"), *_panels(m)] for m in deployment.models]
    blocks += [[_row(f"{step.name}, a step"), *_batcher_panels(step)] for step in deployment.steps]
    if deployment.resources.gpus:
        blocks.append([_row("GPUs"), *_gpu_panels()])
    content = {
        "uid": deployment.name,
        "title": f"Triton: {deployment.name}",
        "description": deployment.summary,
        "tags": ["triton"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": _variables(deployment)},
        "panels": _placed(blocks),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _variables(deployment: Deployment) -> list[dict[str, Any]]:
    names = "|".join(re.escape(model.name) for model in deployment.models)
    query = f"label_values({expressions.SUCCESS}{{model=~{json.dumps(names)}}}, instance)"
    return [
        {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "label": "Instance",
            "type": "query",
            "datasource": _SOURCE,
            "query": {"query": query, "refId": "instance"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        },
    ]


def _measured_text(model: MeasuredModel) -> str:
    return (
        f"{model.requests_per_second:.4g} requests/s per instance at"
        f" p{model.limit.percentile:g} <= {model.limit.latency_ms:g} ms"
    )


def _panels(model: MeasuredModel) -> Iterator[dict[str, Any]]:
    selector = selected(model, _INSTANCE)
    capacity, limit = model.requests_per_second, model.limit.latency_ms
    percentile = f"p{model.limit.percentile:g}"
    yield _panel(
        "Request rate per instance",
        "reqps",
        expressions.requests(selector),
        f"Red: measured capacity, {capacity:.4g} requests/s.",
        [("orange", NEAR_CAPACITY * capacity), ("red", capacity)],
    )
    yield _panel(
        f"{percentile} latency inside the server",
        "ms",
        expressions.latency_ms(model, _INSTANCE),
        f"Red: limit, {limit:g} ms; orange: {percentile} that the client measured at the capacity,"
        f" {model.latency_ms:.4g} ms.",
        [("orange", model.latency_ms), ("red", limit)]
        if model.latency_ms < limit
        else [("red", limit)],
    )
    yield from _batcher_panels(model)
    yield _panel(
        "Failed requests",
        "percentunit",
        expressions.failures(selector),
        "No request failed in the measurement.",
        [("red", alerts.FAILURE_LIMIT)],
    )
    yield _panel(
        "Successful requests",
        "reqps",
        f"sum by (model) ({expressions.succeeded(selector)})",
        "Sum over all instances.",
        [],
        legend="{{model}}",
    )


def _batcher_panels(model: MeasuredModel) -> Iterator[dict[str, Any]]:
    selector = selected(model, _INSTANCE)
    yield _panel(
        "Mean queue time",
        "ms",
        expressions.queue_ms(selector),
        _measured_value(model.queue_ms, "Measured at the capacity: {:.4g} ms."),
        [("orange", model.queue_ms)] if model.queue_ms is not None else [],
    )
    yield _panel(
        "Mean batch size",
        "none",
        expressions.batch_size(selector),
        _measured_value(model.batch_size, "Measured at the capacity: {:.4g} inferences."),
        [("orange", model.batch_size)] if model.batch_size is not None else [],
    )


def _gpu_panels() -> Iterator[dict[str, Any]]:
    own, legend = "{" + _INSTANCE + "}", "{{instance}} {{gpu_uuid}}"
    for title, unit, metric in (
        ("GPU utilisation", "percentunit", expressions.GPU_UTILIZATION),
        ("GPU memory used", "bytes", expressions.GPU_MEMORY_BYTES),
    ):
        yield _panel(title, unit, f"max by (instance, gpu_uuid) ({metric}{own})", "", [], legend)


def _measured_value(value: float | None, text: str) -> str:
    return text.format(value) if value is not None else "Not measured."


def _row(title: str) -> dict[str, Any]:
    return {"type": "row", "title": title, "collapsed": False, "panels": []}


def _panel(
    title: str,
    unit: str,
    expression: str,
    description: str,
    steps: _Steps,
    legend: str = "{{instance}}",
) -> dict[str, Any]:
    colours: list[dict[str, Any]] = [{"color": "green", "value": None}]
    colours += [{"color": colour, "value": value} for colour, value in steps]
    return {
        "type": "timeseries",
        "title": title,
        "description": description,
        "datasource": _SOURCE,
        "targets": [
            {
                "refId": "A",
                "datasource": _SOURCE,
                "expr": expression,
                "legendFormat": legend,
            }
        ],
        "fieldConfig": {
            "defaults": {
                "unit": unit,
                "min": 0,
                "custom": {"thresholdsStyle": {"mode": "line" if steps else "off"}},
                "thresholds": {"mode": "absolute", "steps": colours},
            },
            "overrides": [],
        },
        "options": {"legend": {"displayMode": "list", "placement": "bottom", "showLegend": True}},
    }


def _placed(blocks: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Give rows and panels their ids and positions, with three panels beside each other."""
    placed: list[dict[str, Any]] = []
    top = 0
    for row, *panels in blocks:
        placed.append(
            {**row, "gridPos": {"x": 0, "y": top, "w": _PANEL_WIDTH * _PANELS_PER_ROW, "h": 1}}
        )
        for index, panel in enumerate(panels):
            position = {
                "x": _PANEL_WIDTH * (index % _PANELS_PER_ROW),
                "y": top + 1 + _PANEL_HEIGHT * (index // _PANELS_PER_ROW),
                "w": _PANEL_WIDTH,
                "h": _PANEL_HEIGHT,
            }
            placed.append({**panel, "gridPos": position})
        top += 1 + _PANEL_HEIGHT * -(-len(panels) // _PANELS_PER_ROW)
    return [{"id": number, **panel} for number, panel in enumerate(placed, 1)]

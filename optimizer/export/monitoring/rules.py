"""Prometheus rules, and the test by which promtool holds them to their word."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.alerts import RECORDED, Alert, Live, alerts, healthy
from optimizer.export.monitoring.dashboard import dashboard
from optimizer.export.yaml_text import yaml_text

RULES_FILE = "monitoring/triton-rules.yaml"
_TEST_FILE = "monitoring/triton-rules-test.yaml"
_DASHBOARD_FILE = "monitoring/grafana-dashboard.json"

_MINUTES = 30
_INSTANCE = "triton-1:8002"


def monitoring_files(deployment: Deployment) -> dict[str, str]:
    """Rules, their test and the dashboard, by path."""
    return {
        RULES_FILE: yaml_text(deployment.summary, {"groups": _groups(deployment)}),
        _TEST_FILE: yaml_text(
            "promtool test rules triton-rules-test.yaml",
            {
                "rule_files": [RULES_FILE.rpartition("/")[2]],
                "evaluation_interval": "1m",
                "tests": [test for model in deployment.models for test in _tests(model)],
            },
        ),
        _DASHBOARD_FILE: dashboard(deployment),
    }


def _groups(deployment: Deployment) -> list[dict[str, Any]]:
    recorded = [
        {"record": name, "expr": expression(model), "labels": {"model": model.name}}
        for model in deployment.models
        for name, expression in RECORDED
    ]
    watched = [_rule(model, alert) for model in deployment.models for alert in alerts(model)]
    return [
        {"name": f"{deployment.name}-recorded", "rules": recorded},
        {"name": f"{deployment.name}-alerts", "rules": watched},
    ]


def _rule(model: MeasuredModel, alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.wait,
        "labels": {"severity": alert.severity, "model": model.name},
        "annotations": {"summary": alert.summary, "description": alert.description},
    }


def _tests(model: MeasuredModel) -> Iterator[dict[str, Any]]:
    """Every alert with a server that sets it off, and all of them with one that is as measured."""
    own = list(alerts(model))
    for alert in own:
        yield _test(model, f"{model.name}: {alert.name}", alert.instance, [_expected(model, alert)])
    silent = [{"alertname": a.name, "eval_time": f"{_MINUTES}m", "exp_alerts": []} for a in own]
    yield _test(model, f"{model.name}: as it was measured", healthy(model), silent)


def _expected(model: MeasuredModel, alert: Alert) -> dict[str, Any]:
    told = {
        "exp_labels": {
            "severity": alert.severity,
            "instance": _INSTANCE,
            "model": model.name,
        },
        "exp_annotations": {
            "summary": alert.summary.replace("{{ $labels.instance }}", _INSTANCE),
            "description": alert.description,
        },
    }
    return {"alertname": alert.name, "eval_time": f"{_MINUTES}m", "exp_alerts": [told]}


def _test(
    model: MeasuredModel, name: str, live: Live, expected: list[dict[str, Any]]
) -> dict[str, Any]:
    return {
        "name": name,
        "interval": "1m",
        "input_series": list(_series(model, live)),
        "alert_rule_test": expected,
    }


def _series(model: MeasuredModel, live: Live) -> Iterator[dict[str, str]]:
    """Triton's counters and gauges of a server in this state."""
    a_minute = 60 * live.requests_per_second
    good = (1 - live.failures) * a_minute
    inferences = good * max(1.0, live.batch_size)
    counters = {
        expressions.SUCCESS: good,
        expressions.QUEUE_US: 1000 * live.queue_ms * good,
        expressions.COUNT: inferences,
        expressions.EXECUTIONS: inferences / live.batch_size,
    }
    for metric, increase in counters.items():
        yield _one(metric, model, f"0+{increase:.10g}x{_MINUTES}")
    failed = f"0+{live.failures * a_minute:.10g}x{_MINUTES}"
    yield _one(expressions.FAILURE, model, failed, 'reason="BACKEND"')
    quantile = f'quantile="{model.limit.percentile / 100:g}"'
    latency = f"{1000 * live.latency_ms:.10g}x{_MINUTES}"
    yield _one(expressions.LATENCY_US, model, latency, quantile)


def _one(metric: str, model: MeasuredModel, values: str, *labels: str) -> dict[str, str]:
    selector = expressions.selected(model, 'version="1"', f'instance="{_INSTANCE}"', *labels)
    return {"series": f"{metric}{selector}", "values": values}

"""Prometheus rules, and the test by which promtool holds them to their word."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.alerts import RECORDED, Alert, alerts
from optimizer.export.monitoring.dashboard import dashboard
from optimizer.export.monitoring.expressions import selected
from optimizer.export.monitoring.live import Live, calm, with_room
from optimizer.export.yaml_text import yaml_text

RULES_FILE = "monitoring/triton-rules.yaml"
_TEST_FILE = "monitoring/triton-rules-test.yaml"
_DASHBOARD_FILE = "monitoring/grafana-dashboard.json"

_MINUTES = 30


def monitoring_files(deployment: Deployment) -> dict[str, str]:
    """Rules, their test and the dashboard, by path."""
    return {
        RULES_FILE: yaml_text(deployment.summary, {"groups": _groups(deployment)}),
        _TEST_FILE: yaml_text(
            "promtool test rules triton-rules-test.yaml",
            {
                "rule_files": [RULES_FILE.rpartition("/")[2]],
                "evaluation_interval": "1m",
                "tests": [
                    test for model in deployment.models for test in _tests(deployment, model)
                ],
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
    watched = [
        _rule(model, alert) for model in deployment.models for alert in alerts(deployment, model)
    ]
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


def _tests(deployment: Deployment, model: MeasuredModel) -> Iterator[dict[str, Any]]:
    """Every alert with servers that set it off, and all of them with one that gives no cause."""
    own = list(alerts(deployment, model))
    for alert in own:
        name = f"{model.name}: {alert.name}"
        yield _test(deployment, model, name, alert.servers, [_expected(model, alert)])
    silent = [{"alertname": a.name, "eval_time": f"{_MINUTES}m", "exp_alerts": []} for a in own]
    for name, live in calm(model).items():
        yield _test(deployment, model, f"{model.name}: {name}", (live,), silent)


def _expected(model: MeasuredModel, alert: Alert) -> dict[str, Any]:
    where = {"instance": _instance(0)} if alert.by_instance else {}
    told = {
        "exp_labels": {"severity": alert.severity, **where, "model": model.name},
        "exp_annotations": {
            "summary": alert.summary.replace("{{ $labels.instance }}", _instance(0)),
            "description": alert.description,
        },
    }
    return {"alertname": alert.name, "eval_time": f"{_MINUTES}m", "exp_alerts": [told]}


def _test(
    deployment: Deployment,
    model: MeasuredModel,
    name: str,
    servers: Sequence[Live],
    expected: list[dict[str, Any]],
) -> dict[str, Any]:
    """The other models give no cause: their alerts have the same names."""
    shown = [
        each
        for number, live in enumerate(servers)
        for other in deployment.models
        for each in _series(other, live if other is model else with_room(other), number)
    ]
    return {
        "name": name,
        "interval": "1m",
        "input_series": shown,
        "alert_rule_test": expected,
    }


def _series(model: MeasuredModel, live: Live, number: int) -> Iterator[dict[str, str]]:
    """Triton's counters and gauges of a server in this state, for requests of one inference."""
    minutes, end = _MINUTES, ""
    if live.gone_after_minutes is not None:
        minutes, end = live.gone_after_minutes, " stale"

    def one(metric: str, start: float, a_minute: float, *labels: str) -> dict[str, str]:
        own = ('version="1"', f'instance="{_instance(number)}"', *labels)
        values = f"{start:.10g}+{a_minute:.10g}x{minutes}"
        return {"series": f"{metric}{selected(model, *own)}", "values": values + end}

    asked = 60 * live.requests_per_second
    good = (1 - live.failures) * asked
    yield one(expressions.SUCCESS, 0, good)
    yield one(expressions.FAILURE, 0, live.failures * asked, 'reason="BACKEND"')
    yield one(expressions.QUEUE_US, 0, 1000 * live.queue_ms * good)
    yield one(expressions.COUNT, 0, good)
    yield one(expressions.EXECUTIONS, 0, good / live.batch_size)
    yield one(expressions.PENDING, live.waiting, 0)
    quantile = f'quantile="{model.limit.percentile / 100:g}"'
    yield one(expressions.LATENCY_US, 1000 * live.latency_ms, 0, quantile)


def _instance(number: int) -> str:
    return f"triton-{number + 1}:8002"

"""Prometheus rules, and the test by which promtool checks them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from optimizer.export.deployment import Deployment, MeasuredModel
from optimizer.export.monitoring import expressions
from optimizer.export.monitoring.alerts import Alert, alerts
from optimizer.export.monitoring.dashboard import dashboard
from optimizer.export.monitoring.expressions import selected
from optimizer.export.monitoring.server_states import (
    ServerState,
    below_capacity,
    states_without_alerts,
)
from optimizer.export.rendering import yaml_text

RULES_FILE = "monitoring/triton-rules.yaml"
_TEST_FILE = "monitoring/triton-rules-test.yaml"
_DASHBOARD_FILE = "monitoring/grafana-dashboard.json"

_TEST_MINUTES = 30

_RECORDED: Mapping[str, Callable[[MeasuredModel], str]] = {
    "instance_model:triton_requests:rate5m": lambda m: expressions.requests(selected(m)),
    "instance_model:triton_failures:ratio_rate5m": lambda m: expressions.failures(selected(m)),
    "instance_model:triton_queue_ms:mean5m": lambda m: expressions.queue_ms(selected(m)),
    "instance_model:triton_batch_size:mean5m": lambda m: expressions.batch_size(selected(m)),
    "instance_model:triton_capacity_used:ratio_rate5m": (
        lambda m: f"({expressions.requests(selected(m))}) / {m.requests_per_second:.6g}"
    ),
}
"""Series that are recorded of every model, by name."""


def monitoring_files(deployment: Deployment) -> dict[str, str]:
    """Return the rules, their test and the dashboard, by path."""
    tests = [test for model in deployment.watched for test in _tests(deployment, model)]
    return {
        RULES_FILE: yaml_text(deployment.summary, {"groups": _groups(deployment)}),
        _TEST_FILE: yaml_text(
            "promtool test rules triton-rules-test.yaml",
            {
                "rule_files": [RULES_FILE.rpartition("/")[2]],
                "evaluation_interval": "1m",
                "tests": tests,
            },
        ),
        _DASHBOARD_FILE: dashboard(deployment),
    }


def _groups(deployment: Deployment) -> list[dict[str, Any]]:
    recorded = [
        {"record": name, "expr": expression(model), "labels": {"model": model.name}}
        for model in deployment.watched
        for name, expression in _RECORDED.items()
    ]
    alerting = [
        _rule(model, alert) for model in deployment.watched for alert in alerts(deployment, model)
    ]
    return [
        {"name": f"{deployment.name}-recorded", "rules": recorded},
        {"name": f"{deployment.name}-alerts", "rules": alerting},
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
    """Yield a test per alert in a state that makes it fire, and tests in which none may fire."""
    own = list(alerts(deployment, model))
    for alert in own:
        name = f"{model.name}: {alert.name}"
        yield _test(deployment, model, name, alert.servers, [_firing(model, alert)])
    silent = [
        {"alertname": a.name, "eval_time": f"{_TEST_MINUTES}m", "exp_alerts": []} for a in own
    ]
    for name, state in states_without_alerts(model).items():
        yield _test(deployment, model, f"{model.name}: {name}", (state,), silent)


def _firing(model: MeasuredModel, alert: Alert) -> dict[str, Any]:
    instance = {"instance": _instance(0)} if alert.by_instance else {}
    expected = {
        "exp_labels": {"severity": alert.severity, **instance, "model": model.name},
        "exp_annotations": {
            "summary": alert.summary.replace("{{ $labels.instance }}", _instance(0)),
            "description": alert.description,
        },
    }
    return {"alertname": alert.name, "eval_time": f"{_TEST_MINUTES}m", "exp_alerts": [expected]}


def _test(
    deployment: Deployment,
    model: MeasuredModel,
    name: str,
    servers: Sequence[ServerState],
    expected: list[dict[str, Any]],
) -> dict[str, Any]:
    """Make a test in which other models give no cause: their alerts have the same names."""
    series = [
        each
        for number, state in enumerate(servers)
        for other in deployment.watched
        for each in _series(other, state if other is model else below_capacity(other), number)
    ]
    return {
        "name": name,
        "interval": "1m",
        "input_series": series,
        "alert_rule_test": expected,
    }


def _series(model: MeasuredModel, state: ServerState, number: int) -> Iterator[dict[str, str]]:
    """Yield Triton's counters and gauges in a state, for requests of one inference."""
    minutes, end = _TEST_MINUTES, ""
    if state.gone_after_minutes is not None:
        minutes, end = state.gone_after_minutes, " stale"

    def series(metric: str, start: float, per_minute: float, *labels: str) -> dict[str, str]:
        own = ('version="1"', f'instance="{_instance(number)}"', *labels)
        values = f"{start:.10g}+{per_minute:.10g}x{minutes}"
        return {"series": f"{metric}{selected(model, *own)}", "values": values + end}

    requests = 60 * state.requests_per_second
    succeeded = (1 - state.failures) * requests
    yield series(expressions.SUCCESS, 0, succeeded)
    yield series(expressions.FAILURE, 0, state.failures * requests, 'reason="BACKEND"')
    yield series(expressions.QUEUE_US, 0, 1000 * state.queue_ms * succeeded)
    yield series(expressions.COUNT, 0, succeeded)
    yield series(expressions.EXECUTIONS, 0, succeeded / state.batch_size)
    yield series(expressions.PENDING, state.pending, 0)
    quantile = f'quantile="{model.limit.percentile / 100:g}"'
    yield series(expressions.LATENCY_US, 1000 * state.latency_ms, 0, quantile)


def _instance(number: int) -> str:
    return f"triton-{number + 1}:8002"

"""Autoscaling in Kubernetes by the rate of requests, and how it gets to know that rate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optimizer.export.deployment import Deployment
from optimizer.export.monitoring.expressions import REQUESTS_PER_SECOND, SUCCESS
from optimizer.export.yaml_text import yaml_text

_TOLERANCE = 0.1
"""Share above its target at which Kubernetes' controller does not yet start another pod."""

_IN_WHOLE_FROM = 100
"""Requests a second, from which on fractions of one do not matter."""


def autoscaler(deployment: Deployment, target: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """One metric for each model: what asks for most instances decides.

    Args:
        target: name of what is scaled, a Deployment in the sense of Kubernetes.
    """
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": deployment.name, "labels": dict(labels)},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
            "minReplicas": deployment.replicas,
            "maxReplicas": deployment.most_replicas,
            "metrics": [
                _metric(model.name, pod_target(deployment, model.requests_per_second))
                for model in deployment.models
            ],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0},
                "scaleDown": {
                    "stabilizationWindowSeconds": 300,
                    "policies": [{"type": "Pods", "value": 1, "periodSeconds": 60}],
                },
            },
        },
    }


def pod_target(deployment: Deployment, capacity_per_second: float) -> float:
    """Requests a second of a pod that are aimed at: what is let pass above is served as well."""
    return capacity_per_second / (1 + max(deployment.demand.headroom, _TOLERANCE))


def _metric(model: str, target_per_second: float) -> dict[str, Any]:
    return {
        "type": "Pods",
        "pods": {
            "metric": {
                "name": REQUESTS_PER_SECOND,
                "selector": {"matchLabels": {"model": model}},
            },
            "target": {"type": "AverageValue", "averageValue": _quantity(target_per_second)},
        },
    }


def _quantity(value: float) -> str:
    """In thousandths where the value is small, and never more than it."""
    if value >= _IN_WHOLE_FROM:
        return str(math.floor(value))
    return f"{max(1, math.floor(value * 1000))}m"


def adapter_files() -> dict[str, str]:
    """Values of the Helm chart prometheus-adapter, which gives the autoscaler its metric."""
    rule = {
        "seriesQuery": f'{SUCCESS}{{namespace!="",pod!=""}}',
        "resources": {
            "overrides": {name: {"resource": name} for name in ("namespace", "pod")},
        },
        "name": {"as": REQUESTS_PER_SECOND},
        "metricsQuery": "sum(rate(<<.Series>>{<<.LabelMatchers>>}[2m])) by (<<.GroupBy>>)",
    }
    text = "Values of the Helm chart prometheus-adapter: what the HorizontalPodAutoscaler goes by."
    return {"prometheus-adapter.yaml": yaml_text(text, {"rules": {"custom": [rule]}})}

"""Start and resources of the server, as all platforms share them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from optimizer.export.deployment import METRICS_PORT, Deployment, metrics_flags, startup_seconds
from optimizer.export.monitoring.expressions import REQUESTS_PER_SECOND, SUCCESS
from optimizer.export.monitoring.rules import RULES_FILE

REPOSITORY = "/models"
"""The model repository in the image."""

_USER = 1000
"""`triton-server` in NVIDIA's images; by number, as Kubernetes checks for root."""

_NODE_LABEL = "node.kubernetes.io/instance-type"
"""Label that clouds put on their nodes."""

_DRAIN_SECONDS = 5
"""Until the Service sends no more requests to a pod that is about to stop."""

_EXIT_SECONDS = 30
"""For replies to the requests that are in flight."""

_MEMORY_STEP_MIB = 64
_MEMORY_FACTOR = 1.5

_HPA_TOLERANCE = 0.1
"""Share above its target at which Kubernetes' autoscaler does not yet start another pod."""

_WHOLE_REQUESTS_FROM = 100
"""Requests per second from which on fractions of one do not matter."""


def template_values(deployment: Deployment) -> dict[str, Any]:
    """Return what the templates of all platforms are filled in with."""
    return {
        "deployment": deployment,
        "demand": f"{deployment.demand.requests_per_second:.4g}",
        "headroom": f"{deployment.demand.headroom:.0%}",
        "repository": REPOSITORY,
        "user": _USER,
        "node_label": _NODE_LABEL,
        "drain_seconds": _DRAIN_SECONDS,
        "grace_seconds": _DRAIN_SECONDS + _EXIT_SECONDS + 10,
        "startup_seconds": startup_seconds(deployment),
        "memory_mib": memory_mib(deployment),
        "resources": _resources(deployment),
        "server_command": lambda http, grpc: server_command(deployment, http, grpc),
        "pod_target": pod_target(deployment, deployment.capacity_per_second),
        "pod_quantity": lambda capacity: _quantity(pod_target(deployment, capacity)),
        "request_rate_metric": REQUESTS_PER_SECOND,
        "success_metric": SUCCESS,
        "rules_file": RULES_FILE,
    }


def server_command(deployment: Deployment, http_port: int, grpc_port: int) -> list[str]:
    """Return tritonserver and its arguments, for the repository in the image."""
    gpus = [] if deployment.resources.gpus else ["--allow-gpu-metrics=false"]
    return [
        "tritonserver",
        f"--model-repository={REPOSITORY}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={METRICS_PORT}",
        f"--exit-timeout-secs={_EXIT_SECONDS}",
        *gpus,
        *metrics_flags(deployment),
        *deployment.flags,
    ]


def _resources(deployment: Deployment) -> Mapping[str, Mapping[str, str | int]]:
    """Return requests and limits of a pod: what the server used at its capacity, and spare memory.

    The CPU has no limit: a container that is throttled for the rest of a 100 ms period adds that to
    the latency.
    """
    used, memory = deployment.resources, memory_mib(deployment)
    requests: dict[str, str | int] = {}
    limits: dict[str, str | int] = {}
    if used.cores is not None:
        requests["cpu"] = f"{max(1, math.ceil(used.cores * 10)) * 100}m"
    if memory is not None:
        requests["memory"] = limits["memory"] = f"{memory}Mi"
    if used.gpus:
        limits["nvidia.com/gpu"] = used.gpus
    return {
        kind: amounts for kind, amounts in (("requests", requests), ("limits", limits)) if amounts
    }


def memory_mib(deployment: Deployment) -> int | None:
    """Return a container's memory limit, shared memory included; None where unmeasured."""
    used = deployment.resources.memory_mib
    if used is None:
        return None
    needed = _MEMORY_FACTOR * used + deployment.image.shared_memory_mib
    return math.ceil(needed / _MEMORY_STEP_MIB) * _MEMORY_STEP_MIB


def pod_target(deployment: Deployment, capacity_per_second: float) -> float:
    """Return the target of the HorizontalPodAutoscaler, in requests per second and pod.

    It is low enough for a pod to serve what the controller tolerates above the target.
    """
    return capacity_per_second / (1 + max(deployment.demand.headroom, _HPA_TOLERANCE))


def _quantity(value: float) -> str:
    """Round down to a quantity of Kubernetes, in thousandths where the value is small."""
    if value >= _WHOLE_REQUESTS_FROM:
        return str(math.floor(value))
    return f"{max(1, math.floor(value * 1000))}m"

"""The server's pods, as Kubernetes and KServe both spell them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from optimizer.export.deployment import METRICS_PORT, Deployment, metrics_flags, startup_seconds
from optimizer.export.platforms.server_image import REPOSITORY, USER
from optimizer.export.yaml_text import yaml_text

IMAGE = "triton"
"""Name of the image in manifests; an overlay puts the registry's in its place."""

NODE_LABEL = "node.kubernetes.io/instance-type"
"""Which clouds put on their nodes."""

_PROBE_SECONDS = 5
_LEAVING_SECONDS = 5
_FINISHING_SECONDS = 30
GRACE_SECONDS = _LEAVING_SECONDS + _FINISHING_SECONDS + 10
"""Time to leave the Service, and to answer what is under way."""

_MEMORY_STEP_MIB = 64
_MEMORY_ROOM = 1.5


def server_container(
    deployment: Deployment, name: str, http_port: int, grpc_port: int
) -> dict[str, Any]:
    """The container, less its ports: which are shown is the platform's affair."""
    return {
        "name": name,
        "image": IMAGE,
        "args": server_command(deployment, http_port, grpc_port),
        "startupProbe": {
            **_probe("/v2/health/ready", http_port),
            "failureThreshold": math.ceil(startup_seconds(deployment) / _PROBE_SECONDS),
        },
        "readinessProbe": {**_probe("/v2/health/ready", http_port), "failureThreshold": 2},
        "livenessProbe": {**_probe("/v2/health/live", http_port), "failureThreshold": 6},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_LEAVING_SECONDS)]}}},
        "resources": resources(deployment),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # noqa: S108
    }


def server_command(deployment: Deployment, http_port: int, grpc_port: int) -> list[str]:
    """Program and arguments, over the repository in the image."""
    gpus = [] if deployment.resources.gpus else ["--allow-gpu-metrics=false"]
    return [
        "tritonserver",
        f"--model-repository={REPOSITORY}",
        f"--http-port={http_port}",
        f"--grpc-port={grpc_port}",
        f"--metrics-port={METRICS_PORT}",
        f"--exit-timeout-secs={_FINISHING_SECONDS}",
        *gpus,
        *metrics_flags(deployment),
        *deployment.flags,
    ]


def shared_memory(deployment: Deployment) -> dict[str, Any]:
    """The volume behind /dev/shm, through which Triton talks to models in Python."""
    size = f"{deployment.image.shared_memory_mib}Mi"
    return {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": size}}


def scraped() -> dict[str, str]:
    """Annotations by which Prometheus finds a pod's metrics."""
    return {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(METRICS_PORT),
        "prometheus.io/path": "/metrics",
    }


def one_a_node(labels: dict[str, str]) -> dict[str, Any]:
    """A node holds one of these pods: the capacity is that of a server which has its machine."""
    term = {"labelSelector": {"matchLabels": labels}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def disruption_budget(deployment: Deployment, labels: Mapping[str, str]) -> dict[str, Any]:
    """Whoever empties nodes takes one pod at a time."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": deployment.name, "labels": dict(labels)},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": dict(labels)}},
    }


def kustomization(
    deployment: Deployment, resources: Sequence[str], patches: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Resources as they are deployed: with the registry's image, and patched."""
    found = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
        "images": [{"name": IMAGE, "newName": deployment.name, "newTag": "1"}],
    }
    return {**found, "patches": patches} if patches else found


def kustomize_patch(
    deployment: Deployment, api: str, kind: str, text: str, content: Mapping[str, Any]
) -> dict[str, Any]:
    """Of the resource that is called like the deployment; `text` is the comment at its head."""
    name = {"name": deployment.name}
    whole = {"apiVersion": api, "kind": kind, "metadata": name, **content}
    return {"target": {"kind": kind, **name}, "patch": yaml_text(text, whole)}


def node_patches(
    deployment: Deployment, api: str, kind: str, path: Sequence[str]
) -> list[dict[str, Any]]:
    """Keeps pods to nodes of the price's type; none where that is no type that nodes are called.

    Args:
        api, kind: of the resource called like the deployment, which is patched.
        path: keys to what holds a `nodeSelector` in it.
    """
    if deployment.node_type is None:
        return []
    spec: dict[str, Any] = {"nodeSelector": {NODE_LABEL: deployment.node_type}}
    for key in reversed(path):
        spec = {key: spec}
    text = "Nodes of the type whose price was counted; where nodes are called otherwise, theirs."
    return [kustomize_patch(deployment, api, kind, text, spec)]


def resources(deployment: Deployment) -> dict[str, Any]:
    """What was used at the capacity, and room for memory to grow.

    Processors have no limit: to be throttled for the rest of a tenth of a second costs latency.
    """
    used, memory = deployment.resources, memory_mib(deployment)
    requests: dict[str, Any] = {}
    limits: dict[str, Any] = {}
    if used.cores is not None:
        requests["cpu"] = f"{max(1, math.ceil(used.cores * 10)) * 100}m"
    if memory is not None:
        requests["memory"] = limits["memory"] = f"{memory}Mi"
    if used.gpus:
        limits["nvidia.com/gpu"] = used.gpus
    return {
        what: amounts for what, amounts in (("requests", requests), ("limits", limits)) if amounts
    }


def memory_mib(deployment: Deployment) -> int | None:
    """That a container may take, shared memory included; None where it was not seen."""
    used = deployment.resources.memory_mib
    if used is None:
        return None
    needed = _MEMORY_ROOM * used + deployment.image.shared_memory_mib
    return math.ceil(needed / _MEMORY_STEP_MIB) * _MEMORY_STEP_MIB


def _probe(path: str, port: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": path, "port": port},
        "periodSeconds": _PROBE_SECONDS,
        "timeoutSeconds": 3,
    }

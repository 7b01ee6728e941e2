"""Kubernetes: a kustomize base that is the configuration, and an overlay that is the demand."""

from __future__ import annotations

from typing import Any

from optimizer.export.deployment import GRPC_PORT, HTTP_PORT, METRICS_PORT, Deployment
from optimizer.export.platforms.autoscaler import adapter_files, autoscaler
from optimizer.export.platforms.pods import (
    GRACE_SECONDS,
    disruption_budget,
    kustomization,
    kustomize_patch,
    node_patches,
    one_a_node,
    scraped,
    server_container,
    shared_memory,
)
from optimizer.export.platforms.server_image import image_files
from optimizer.export.yaml_text import yaml_text

_BASE, _OVERLAY = "base/", "overlays/production/"


def kubernetes_files(deployment: Deployment) -> dict[str, str]:
    """All files by path; the build context of the image is the folder that they lie in.

    The context needs the model repository as well, as `repository`.
    """
    base = {
        "deployment.yaml": _deployment(deployment),
        "service.yaml": _service(deployment),
        "autoscaler.yaml": autoscaler(deployment, deployment.name, _labels(deployment)),
        "disruption-budget.yaml": disruption_budget(deployment, _labels(deployment)),
    }
    files = {
        f"{_BASE}{name}": yaml_text(deployment.summary, content) for name, content in base.items()
    }
    files[f"{_BASE}kustomization.yaml"] = yaml_text(
        "The configuration as it was measured: `overlays/` says how many, where, and which image.",
        {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": sorted(base),
        },
    )
    files[f"{_OVERLAY}kustomization.yaml"] = _overlay(deployment)
    return files | adapter_files() | image_files(deployment)


def _labels(deployment: Deployment) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "triton",
        "app.kubernetes.io/instance": deployment.name,
    }


def _head(deployment: Deployment, api: str, kind: str) -> dict[str, Any]:
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": deployment.name, "labels": _labels(deployment)},
    }


def _deployment(deployment: Deployment) -> dict[str, Any]:
    labels = _labels(deployment)
    container = server_container(deployment, "triton", HTTP_PORT, GRPC_PORT)
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (("http", HTTP_PORT), ("grpc", GRPC_PORT), ("metrics", METRICS_PORT))
    ]
    return {
        **_head(deployment, "apps/v1", "Deployment"),
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": {"labels": labels, "annotations": scraped()},
                "spec": {
                    "containers": [container],
                    "volumes": [shared_memory(deployment)],
                    "affinity": one_a_node(labels),
                    "automountServiceAccountToken": False,
                    "terminationGracePeriodSeconds": GRACE_SECONDS,
                },
            },
        },
    }


def _service(deployment: Deployment) -> dict[str, Any]:
    ports = (("http", HTTP_PORT, "http"), ("grpc", GRPC_PORT, "kubernetes.io/h2c"))
    return {
        **_head(deployment, "v1", "Service"),
        "spec": {
            "selector": _labels(deployment),
            "ports": [
                {"name": name, "port": port, "targetPort": name, "appProtocol": protocol}
                for name, port, protocol in ports
            ],
        },
    }


def _overlay(deployment: Deployment) -> str:
    replicas = {"minReplicas": deployment.replicas, "maxReplicas": deployment.most_replicas}
    demand = deployment.demand
    instances = kustomize_patch(
        deployment,
        "autoscaling/v2",
        "HorizontalPodAutoscaler",
        "Instances: at least those for the demand.",
        {"spec": replicas},
    )
    nodes = node_patches(deployment, "apps/v1", "Deployment", ("spec", "template", "spec"))
    return yaml_text(
        f"{deployment.replicas} serve {demand.requests_per_second:.4g} requests/s and"
        f" {demand.headroom:.0%} more; `images` names the image that Dockerfile was built to.",
        kustomization(deployment, ["../../base"], [instances, *nodes]),
    )

"""KServe: a Triton runtime with the configuration as it was measured, and the service over it."""

from __future__ import annotations

from typing import Any

from optimizer.export.deployment import METRICS_PORT, Deployment
from optimizer.export.platforms.autoscaler import adapter_files, autoscaler
from optimizer.export.platforms.pods import (
    GRACE_SECONDS,
    disruption_budget,
    kustomization,
    node_patches,
    one_a_node,
    scraped,
    server_container,
    shared_memory,
)
from optimizer.export.platforms.server_image import image_files
from optimizer.export.yaml_text import yaml_text

_HTTP_PORT, _GRPC_PORT = 8080, 9000
"""Those of KServe's own Triton runtime."""

_SERVING = "serving.kserve.io/v1beta1"
_FORMAT = {"name": "triton", "version": "2"}


def kserve_files(deployment: Deployment) -> dict[str, str]:
    """All files by path; the build context needs the model repository, as `repository`.

    KServe makes a Deployment of the service, and leaves scaling it to the autoscaler here: its own
    knows no rates of requests without Knative.
    """
    scaled = autoscaler(deployment, f"{deployment.name}-predictor", _labels(deployment))
    contents = {
        "serving-runtime.yaml": _runtime(deployment),
        "inference-service.yaml": _service(deployment),
        "autoscaler.yaml": scaled,
        "disruption-budget.yaml": disruption_budget(deployment, _labels(deployment)),
    }
    files = {name: yaml_text(deployment.summary, content) for name, content in contents.items()}
    nodes = node_patches(deployment, _SERVING, "InferenceService", ("spec", "predictor"))
    files["kustomization.yaml"] = yaml_text(
        "`images` names the image that Dockerfile was built to.",
        kustomization(deployment, sorted(contents), nodes),
    )
    return files | adapter_files() | image_files(deployment)


def _labels(deployment: Deployment) -> dict[str, str]:
    """Those that KServe itself puts on the pods of a service's predictor."""
    return {"serving.kserve.io/inferenceservice": deployment.name}


def _runtime(deployment: Deployment) -> dict[str, Any]:
    container = server_container(deployment, "kserve-container", _HTTP_PORT, _GRPC_PORT)
    ports = [
        {"name": "h2c", "containerPort": _GRPC_PORT, "protocol": "TCP"},
        {"name": "http1", "containerPort": _HTTP_PORT, "protocol": "TCP"},
    ]
    # The first is the one that KServe's Service passes requests to.
    if deployment.protocol == "http":
        ports.reverse()
    ports.append({"name": "metrics", "containerPort": METRICS_PORT, "protocol": "TCP"})
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": deployment.name},
        "spec": {
            "annotations": scraped(),
            "supportedModelFormats": [{**_FORMAT, "autoSelect": False}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [{**container, "ports": ports}],
            "volumes": [shared_memory(deployment)],
            "affinity": one_a_node(_labels(deployment)),
        },
    }


def _service(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": _SERVING,
        "kind": "InferenceService",
        "metadata": {
            "name": deployment.name,
            "annotations": {
                "serving.kserve.io/deploymentMode": "RawDeployment",
                "serving.kserve.io/autoscalerClass": "external",
            },
        },
        "spec": {
            "predictor": {
                "minReplicas": deployment.replicas,
                "maxReplicas": deployment.most_replicas,
                "terminationGracePeriodSeconds": GRACE_SECONDS,
                "model": {
                    "modelFormat": dict(_FORMAT),
                    "runtime": deployment.name,
                    "protocolVersion": "grpc-v2" if deployment.protocol == "grpc" else "v2",
                },
            }
        },
    }

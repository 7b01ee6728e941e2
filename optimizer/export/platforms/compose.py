"""Docker compose: one instance, and Prometheus beside it where that is asked for."""

from __future__ import annotations

import math
from typing import Any

from optimizer.export.deployment import (
    GRPC_PORT,
    HTTP_PORT,
    METRICS_PORT,
    Deployment,
    startup_seconds,
)
from optimizer.export.monitoring.rules import RULES_FILE
from optimizer.export.platforms.pods import memory_mib, server_command
from optimizer.export.platforms.server_image import image_files
from optimizer.export.yaml_text import yaml_text

_PROMETHEUS = "prom/prometheus:v2.53.4"
_PROBE_SECONDS = 5


def compose_files(deployment: Deployment) -> dict[str, str]:
    """All files by path; the build context needs the model repository, as `repository`.

    Prometheus reads the rules in `monitoring/`.
    """
    services = {"triton": _triton(deployment), "prometheus": _prometheus()}
    return {
        "compose.yaml": yaml_text(
            f"{deployment.summary}\n"
            "docker compose up --build --wait; with --profile monitoring Prometheus beside it",
            {"services": services},
        ),
        "prometheus.yml": yaml_text(
            "Where Prometheus finds the server, and what it watches.",
            {
                "global": {"scrape_interval": "15s"},
                "rule_files": [RULES_FILE],
                "scrape_configs": [
                    {
                        "job_name": deployment.name,
                        "static_configs": [{"targets": [f"triton:{METRICS_PORT}"]}],
                    }
                ],
            },
        ),
        **image_files(deployment),
    }


def _triton(deployment: Deployment) -> dict[str, Any]:
    ready = f"http://127.0.0.1:{HTTP_PORT}/v2/health/ready"
    probe = f"import urllib.request as u; u.build_opener(u.ProxyHandler({{}})).open('{ready}')"
    service: dict[str, Any] = {
        "build": ".",
        "image": deployment.name,
        "command": server_command(deployment, HTTP_PORT, GRPC_PORT),
        # Triton does not ask who calls.
        "ports": [f"127.0.0.1:{port}:{port}" for port in (HTTP_PORT, GRPC_PORT, METRICS_PORT)],
        "shm_size": f"{deployment.image.shared_memory_mib}m",
        "restart": "unless-stopped",
        "stop_grace_period": "40s",
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        "healthcheck": {
            # What every image of Triton has, unlike curl; proxies of the engine's are passed over.
            "test": ["CMD", "python3", "-c", probe],
            "interval": f"{_PROBE_SECONDS}s",
            "timeout": "4s",
            "retries": math.ceil(startup_seconds(deployment) / _PROBE_SECONDS),
        },
    }
    memory = memory_mib(deployment)
    if memory is not None:
        service["mem_limit"] = f"{memory}m"
    if deployment.resources.gpus:
        gpus = {
            "driver": "nvidia",
            "count": deployment.resources.gpus,
            "capabilities": ["gpu"],
        }
        service["deploy"] = {"resources": {"reservations": {"devices": [gpus]}}}
    return service


def _prometheus() -> dict[str, Any]:
    return {
        "image": _PROMETHEUS,
        "profiles": ["monitoring"],
        "ports": ["127.0.0.1:9090:9090"],
        "volumes": [
            "./prometheus.yml:/etc/prometheus/prometheus.yml:ro",
            f"./{RULES_FILE}:/etc/prometheus/{RULES_FILE}:ro",
        ],
        "depends_on": ["triton"],
    }

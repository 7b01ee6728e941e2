from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from optimizer.export.deployment import Deployment
from optimizer.export.monitoring.rules import monitoring_files
from tests.unit.deployments import ALL, ON_CPU, ON_GPU, SEVERAL, platform_files
from tests.unit.test_export_kubernetes import container_of, documents, kept
from tests.unit.test_export_monitoring import said

pytestmark = pytest.mark.tools


def compose() -> list[str]:
    """Docker's plugin, or the program that was before it."""
    docker = shutil.which("docker")
    if docker is not None:
        plugin = subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False, timeout=30
        )
        if plugin.returncode == 0:
            return [docker, "compose"]
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("docker compose is not installed (Debian: docker-compose)")
    return [program]


def triton(deployment: Deployment) -> dict[str, Any]:
    service: dict[str, Any] = documents(platform_files("compose", deployment)["compose.yaml"])[0][
        "services"
    ]["triton"]
    return service


@pytest.mark.parametrize("deployment", ALL, ids=lambda d: d.name)
def test_docker_compose_takes_the_file(deployment: Deployment, tmp_path: Path) -> None:
    file = kept(platform_files("compose", deployment), tmp_path) / "compose.yaml"
    told = said(*compose(), "-f", file, "config")
    assert "tritonserver" in told


def test_docker_compose_refuses_what_is_misspelt(tmp_path: Path) -> None:
    file = kept(platform_files("compose", ON_CPU), tmp_path) / "compose.yaml"
    file.write_text(file.read_text().replace("healthcheck:", "health_check:"))
    done = subprocess.run(
        [*compose(), "-f", file, "config"], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode != 0
    assert "health_check" in done.stdout + done.stderr


def test_promtool_takes_the_configuration_of_prometheus(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    folder = kept(platform_files("compose", ON_CPU) | monitoring_files(ON_CPU), tmp_path)
    assert "1 rule files found" in said(promtool, "check", "config", folder / "prometheus.yml")


def test_gpus_are_asked_for_where_they_are_used() -> None:
    devices = triton(ON_GPU)["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in triton(ON_CPU)


def test_an_image_of_triton_is_extended_and_one_of_python_gets_it() -> None:
    extended = platform_files("compose", ON_GPU)
    assert extended["Dockerfile"] == (
        "# Built for one configuration, with the software that it was measured with.\n"
        "FROM nvcr.io/nvidia/tritonserver:26.05-py3\n"
        "\n"
        "# Triton needs no root: the models belong to its user, whatever their modes were.\n"
        "COPY --chown=1000:1000 repository /models\n"
        "USER 1000:1000\n"
        "\n"
        'CMD ["tritonserver"]\n'
    )
    assert "requirements.txt" not in extended
    made = platform_files("compose", ON_CPU)
    assert made["requirements.txt"] == (
        "nvidia-pytriton==0.7.0\nnumpy==1.26.4\nopenvino==2026.4.1\n"
    )
    assert "/opt/tritonserver/backends/python" in made["Dockerfile"]
    assert "RUN useradd --uid 1000 triton-server\n" in made["Dockerfile"]


def test_only_its_own_machine_reaches_a_server_that_does_not_ask_who_calls() -> None:
    services = documents(platform_files("compose", ON_CPU)["compose.yaml"])[0]["services"]
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert len(services["triton"]["ports"]) == 3
    assert '`"8000:8000"` or `"8001:8001"`' in platform_files("compose", ON_CPU)["README.md"]


def test_a_container_gets_the_memory_and_the_rights_that_a_pod_gets() -> None:
    service = triton(ON_CPU)
    assert (service["mem_limit"], service["cap_drop"]) == ("1664m", ["ALL"])
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert container_of(ON_CPU)["resources"]["limits"]["memory"] == "1664Mi"
    assert "mem_limit" not in triton(SEVERAL)


def test_the_readme_says_that_a_machine_holds_one_instance() -> None:
    said = platform_files("compose", ON_CPU)["README.md"]
    assert "needs 8 of them, each on a machine of its own" in said

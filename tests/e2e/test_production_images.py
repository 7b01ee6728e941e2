"""The images that are written for production, built and run by a real engine, with few rights."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from optimizer.export.deployment import Deployment, container_image
from optimizer.export.platforms.sagemaker import write_model_archive
from optimizer.export.platforms.server import server_command
from tests.docker.engine import prepared_image
from tests.e2e.conftest import Built
from tests.e2e.production import DEPLOYMENT, REQUEST, write_repository
from tests.e2e.running import wait_until
from tests.unit.deployments import platform_files
from tests.unit.test_export_kubernetes import kept

pytestmark = [pytest.mark.docker, pytest.mark.timeout(300)]

ASK = """
import json, sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.argv[2].encode() or None)
request.add_header("Content-Type", "application/json")
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


@pytest.fixture(scope="module")
def deployment() -> Deployment:
    """On an image with a server, as NVIDIA's are."""
    return replace(DEPLOYMENT, image=container_image(prepared_image(), []))


@contextmanager
def running(context: Path, command: list[str], **options: Any) -> Iterator[Container]:
    """A container of the image that a folder's Dockerfile makes; both are gone afterwards."""
    engine = docker.from_env()
    image = engine.images.build(path=str(context), rm=True, network_mode="none")[0].id
    assert image is not None
    container = engine.containers.run(
        image, command, detach=True, network_mode="none", shm_size=2**28, **options
    )
    try:
        yield container
    finally:
        container.remove(force=True)
        engine.images.remove(image)


def asked(container: Container, url: str, body: Mapping[str, Any] | None = None) -> str | None:
    """The reply; None where nobody answers, or not with 200."""
    text = json.dumps(body) if body is not None else ""
    code, said = container.exec_run(["python3", "-c", ASK, f"http://127.0.0.1{url}", text])
    return str(said, "utf-8") if code == 0 and isinstance(said, bytes) else None


def user_of(container: Container) -> int:
    _, said = container.exec_run(["stat", "-c", "%u", "/proc/1"])
    return int(said) if isinstance(said, bytes) else -1


def test_the_server_needs_neither_root_nor_a_capability(
    built: Built, deployment: Deployment, tmp_path: Path
) -> None:
    repository = write_repository(
        built, kept(platform_files("compose", deployment), tmp_path) / "repository"
    )
    # As whoever has a strict umask writes it.
    for path in (repository, *repository.rglob("*")):
        path.chmod(0o700 if path.is_dir() else 0o600)
    rights = {"cap_drop": ["ALL"], "security_opt": ["no-new-privileges:true"]}
    with running(tmp_path, server_command(deployment, 8000, 8001), **rights) as container:
        wait_until(lambda: asked(container, ":8000/v2/health/ready") is not None, "a ready server")
        assert user_of(container) == 1000
        reply = asked(container, ":8000/v2/models/bert/infer", REQUEST)
        assert reply is not None, container.logs()
        [output] = json.loads(reply)["outputs"]
        assert output["shape"] == [1, 3]


def test_sagemakers_container_serves_what_sagemaker_puts_into_it(
    built: Built, deployment: Deployment, tmp_path: Path
) -> None:
    repository = write_repository(built, tmp_path / "repository")
    write_model_archive(repository, ["bert"], tmp_path / "model.tar.gz")
    files = platform_files("sagemaker", deployment)
    kept(files, tmp_path)
    with tarfile.open(tmp_path / "model.tar.gz") as archive:
        archive.extractall(tmp_path / "model", filter="data")
    with running(
        tmp_path / "image",
        ["serve"],
        environment=json.loads(files["create-model.json"])["PrimaryContainer"]["Environment"],
        volumes={str(tmp_path / "model"): {"bind": "/opt/ml/model", "mode": "ro"}},
    ) as container:
        wait_until(lambda: asked(container, ":8080/ping") is not None, "an answer to /ping")
        reply = asked(container, ":8080/invocations", REQUEST)
        assert reply is not None, container.logs()
        [output] = json.loads(reply)["outputs"]
        assert output["shape"] == [1, 3]

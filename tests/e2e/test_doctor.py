"""doctor on this machine, as a process."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from uuid import uuid4

import docker
import pytest
from docker import DockerClient
from docker.errors import DockerException

from tests.e2e.running import ROOT


def doctor(folder: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "optimizer", "doctor", "--cache", "cache", "--results", "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **settings},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def rows(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_embedded_server_can_run_here_and_nothing_is_left(tmp_path: Path) -> None:
    done = doctor(tmp_path, DOCKER_HOST=f"unix://{tmp_path}/no.sock")
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    assert any(row.startswith("embedded server ok tritonserver of") for row in found)
    assert "embedded, CPU yes onnxruntime, openvino, pytorch" in found
    assert "docker, CPU no needs Docker" in found
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def engine() -> DockerClient:
    try:
        return docker.from_env()
    except DockerException as error:
        reason = str(error)
    # The SDK leaves the socket open by which it has asked; it is closed while nobody minds.
    gc.collect()
    pytest.skip(f"no Docker engine answers: {reason}")


@pytest.fixture
def image(engine: DockerClient) -> Iterator[str]:
    """An image of nothing, which says of itself what NVIDIA's images say."""
    name = f"tritonserver-{uuid4().hex[:8]}:1"
    engine.images.build(
        fileobj=BytesIO(
            b"FROM scratch\nENV TRITON_SERVER_VERSION=2.69.0 TRT_VERSION=10.16.1.11+cuda13.2\n"
        ),
        tag=name,
        rm=True,
    )
    yield name
    engine.images.remove(name, noprune=False)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.docker
def test_a_real_engine_tells_its_images_and_what_they_hold(
    tmp_path: Path, engine: DockerClient, image: str
) -> None:
    done = doctor(tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    assert f"Docker engine ok {engine.version()['Version']}" in found
    assert f"{image} ok Triton 2.69.0, TensorRT 10.16.1.11" in found
    assert any(row.startswith("docker, CPU unknown if the image's Python has") for row in found)
    assert engine.containers.list(all=True, filters={"ancestor": image}) == []

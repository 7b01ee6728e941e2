"""The engine and the image that scripts/check prepares for the tests marked `docker`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import docker
import psutil
import pytest
from docker.models.containers import Container

OWNER = "triton-cost-optimizer.owner-pid"


def prepared_image() -> str:
    """Name of the image with a Triton; skips the test, with the reason, where there is none."""
    image = os.environ.get("OPTIMIZER_TEST_IMAGE")
    if image is None:
        pytest.skip(os.environ.get("OPTIMIZER_NO_DOCKER", "run by `make test-docker`"))
    return image


def containers_in(folder: Path) -> list[Container]:
    """Containers of the optimizer, ended ones too, that serve a repository in this folder."""
    listed = docker.from_env().containers.list(
        all=True, filters={"label": OWNER}, ignore_removed=True
    )
    return [each for each in listed if each.attrs["Config"]["WorkingDir"] == str(folder.resolve())]


def processes_in(folder: Path) -> Iterator[psutil.Process]:
    """What runs in these containers, less the first process of each, which is Docker's own."""
    for container in containers_in(folder):
        if first := container.attrs["State"]["Pid"]:
            try:
                yield from psutil.Process(first).children(recursive=True)
            except psutil.NoSuchProcess:
                continue


def remove_containers_in(folder: Path) -> None:
    """Remove what a failed test has left."""
    for container in containers_in(folder):
        container.remove(force=True)

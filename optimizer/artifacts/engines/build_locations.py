"""Where an engine is built: this Python, NVIDIA's tensorrt image, or trtexec.

Every location builds the same recipe on the GPU of the settings and returns the engine's facts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optimizer.artifacts.build_context import ReportProgress
from optimizer.artifacts.cache import versions
from optimizer.artifacts.engines import build_script, script_output, trtexec
from optimizer.artifacts.engines.build_monitor import Running, watch
from optimizer.artifacts.engines.recipe import Recipe
from optimizer.configuration.hosting import BuildLocationName, EngineSettings
from optimizer.configuration.releases import EngineFacts
from optimizer.errors import BuildFailure
from optimizer.files.credentials import without_secrets
from optimizer.machine import child_shim
from optimizer.machine.cores import usable_cores
from optimizer.machine.docker_engine import (
    ContainerEngine,
    ContainerTask,
    Image,
    Mount,
    remove_containers_of_the_dead,
)

_SCRIPT = Path(build_script.__file__)
_PROBE_SECONDS = 300.0
"""On a cold disk the libraries that trtexec loads are read for minutes."""


_GRAPH, _PLANS, _TIMINGS, _MOUNTED_SCRIPT = "/graph", "/plans", "/timings", "/build_script.py"
"""Paths in containers."""


@dataclass(frozen=True)
class Folders:
    """What a build reads and writes.

    Attributes:
        graph: holds the ONNX file and its external data; read-only.
        plans: receives the plan.
        timings: holds the timing cache, which is read and rewritten.
    """

    graph: Path
    plans: Path
    timings: Path


class BuildLocation(Protocol):
    """Builds engines with one installation of TensorRT."""

    def identity(self) -> Mapping[str, str]:
        """Return what decides TensorRT's version there, as JSON values; builds nothing.

        Raises:
            RequirementError: when nothing can be built there.
        """

    def run(self, recipe: Recipe, folders: Folders, on_progress: ReportProgress) -> EngineFacts:
        """Build one engine.

        Args:
            on_progress: receives progress texts, on a thread.

        Raises:
            BuildFailure: when there is no engine.
        """


class Containers(Protocol):
    """The part of `ContainerEngine` that builds use."""

    def image(self, name: str) -> Image:
        """Return a local image. Raises RequirementError."""

    def start(self, task: ContainerTask) -> Running:
        """Start a container. Raises RequirementError or ContainerFailure."""


@dataclass(frozen=True)
class LocalBuildLocation:
    """The tensorrt package of this Python, in a process that ends with this one."""

    settings: EngineSettings

    def identity(self) -> Mapping[str, str]:
        """Return the version of the tensorrt package."""
        return versions("tensorrt")

    def run(self, recipe: Recipe, folders: Folders, on_progress: ReportProgress) -> EngineFacts:
        """Build one engine."""
        cores = ",".join(map(str, usable_cores()))
        command = [
            *(sys.executable, "-I", "-S", str(child_shim.__file__), str(os.getpid()), cores, "--"),
            *(sys.executable, "-P", str(_SCRIPT), recipe.to_json()),
            *map(str, (folders.graph, folders.plans, folders.timings)),
        ]
        process = _Process(command, {"CUDA_VISIBLE_DEVICES": self.settings.gpu.uuid})
        return _build_by_script(process, self.settings, on_progress)


@dataclass(frozen=True)
class ContainerBuildLocation:
    """NVIDIA's tensorrt image of the server's own tag, with the Python package."""

    settings: EngineSettings
    containers: Containers

    def identity(self) -> Mapping[str, str]:
        """Return the id of the image."""
        return {"image": self.containers.image(self.settings.image).id}

    def run(self, recipe: Recipe, folders: Folders, on_progress: ReportProgress) -> EngineFacts:
        """Build one engine."""
        script = ("python3", _MOUNTED_SCRIPT, recipe.to_json(), _GRAPH, _PLANS, _TIMINGS)
        task = _task(self.settings, script, folders, Mount(_SCRIPT, _MOUNTED_SCRIPT))
        return _build_by_script(self.containers.start(task), self.settings, on_progress)


class TrtexecBuildLocation(ContainerBuildLocation):
    """The trtexec of the server's own image."""

    def run(self, recipe: Recipe, folders: Folders, on_progress: ReportProgress) -> EngineFacts:
        """Build one engine."""
        version = self._version(folders)
        command = trtexec.command(recipe, version.major, _GRAPH, _PLANS, _TIMINGS)
        running = self.containers.start(_task(self.settings, command, folders))
        build = watch(running, self.settings.timeout_seconds, trtexec.progress_in, on_progress)
        mismatch = trtexec.gpu_mismatch(recipe, build.lines)
        if build.code != 0 or mismatch is not None:
            raise build.failure(mismatch or trtexec.errors_in(build.lines))
        return EngineFacts(str(version), recipe.gpu_name, recipe.compute_capability)

    def _version(self, folders: Folders) -> trtexec.Version:
        """Return TensorRT's version, which the options depend on."""
        task = _task(self.settings, (trtexec.TRTEXEC, "--help"), folders)
        probe = watch(self.containers.start(task), _PROBE_SECONDS)
        version = trtexec.version_in(probe.lines)
        if version is None:
            raise probe.failure()
        if version.lacking is not None:
            raise BuildFailure(f"{self.settings.image}: {version.lacking}")
        return version


BUILD_LOCATIONS: Mapping[BuildLocationName, Callable[[EngineSettings], BuildLocation]] = {
    "local": LocalBuildLocation,
    "container": lambda settings: ContainerBuildLocation(settings, ContainerEngine.connect()),
    "trtexec": lambda settings: TrtexecBuildLocation(settings, ContainerEngine.connect()),
}


def reap_builds(settings: EngineSettings | None) -> None:
    """Remove the containers of builds whose own process was killed."""
    if settings is not None and settings.build_in != "local":
        remove_containers_of_the_dead()


def _task(
    settings: EngineSettings, command: tuple[str, ...], folders: Folders, *more: Mount
) -> ContainerTask:
    """Return a build's container; the image's entrypoint adds compatibility with older drivers."""
    return ContainerTask(
        image=settings.image,
        command=command,
        mounts=(
            Mount(folders.graph, _GRAPH),
            Mount(folders.plans, _PLANS, read_only=False),
            Mount(folders.timings, _TIMINGS, read_only=False),
            *more,
        ),
        gpu_uuids=(settings.gpu.uuid,),
        network="none",
    )


def _build_by_script(
    running: Running, settings: EngineSettings, on_progress: ReportProgress
) -> EngineFacts:
    timeout = settings.timeout_seconds
    return script_output.facts_of(watch(running, timeout, script_output.progress_in, on_progress))


class _Process:
    """A local process as `Running`."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**without_secrets(os.environ), **environment},
            text=True,
            errors="replace",
        )

    def lines(self) -> Iterator[str]:
        assert self._process.stdout is not None
        with self._process.stdout as output:
            yield from output

    def wait(self, timeout_seconds: float) -> int | None:
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, grace_seconds: float) -> None:
        self._process.terminate()
        if self.wait(grace_seconds) is None:
            self._process.kill()
            self._process.wait()

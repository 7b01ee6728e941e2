"""The three places where an engine is built: this Python, NVIDIA's tensorrt image, or trtexec.

All build by the same recipe on the GPU of the settings, and end with the engine's facts.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from optimizer.artifacts.cache import versions
from optimizer.artifacts.engines import build_script, script_output, trtexec
from optimizer.artifacts.engines.build_monitor import BuildTimedOut, Running, watch
from optimizer.artifacts.engines.recipe import Recipe
from optimizer.configuration.hosting import BuildPlace, EngineSettings
from optimizer.configuration.releases import EngineFacts
from optimizer.errors import BuildFailure, ContainerFailure, RequirementError
from optimizer.machine import child_shim
from optimizer.machine.cores import usable_cores
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Image, Mount

_SCRIPT = Path(build_script.__file__)
_PROBE_SECONDS = 120.0

_GRAPH, _PLANS, _TIMINGS, _MOUNTED_SCRIPT = "/graph", "/plans", "/timings", "/build_script.py"
"""Where containers have what they need."""


@dataclass(frozen=True)
class Folders:
    """What a build reads and writes.

    Attributes:
        graph: of the ONNX file and its external data; only read.
        plans: that the plan is written to.
        timings: of the timing cache, which is used and written anew.
    """

    graph: Path
    plans: Path
    timings: Path


class BuildLocation(Protocol):
    """Builds engines somewhere."""

    def identity(self) -> Mapping[str, str]:
        """What decides TensorRT's version there, as JSON values; cheap, builds nothing.

        Raises:
            RequirementError: when nothing can be built there.
        """

    def run(
        self, recipe: Recipe, folders: Folders, on_progress: Callable[[str], None]
    ) -> EngineFacts:
        """Build one engine.

        Args:
            on_progress: told how far it is, on a thread.

        Raises:
            BuildFailure: when there is no engine.
        """


class Containers(Protocol):
    """What is needed of `optimizer.machine.docker_engine.ContainerEngine`."""

    def image(self, name: str) -> Image:
        """An image that is there. Raises RequirementError."""

    def start(self, task: ContainerTask) -> Running:
        """Start a container. Raises RequirementError or ContainerFailure."""


@dataclass(frozen=True)
class LocalBuildLocation:
    """The tensorrt package of this Python, in a process that ends with this one."""

    settings: EngineSettings

    def identity(self) -> Mapping[str, str]:
        """See `BuildLocation`."""
        return versions("tensorrt")

    def run(
        self, recipe: Recipe, folders: Folders, on_progress: Callable[[str], None]
    ) -> EngineFacts:
        """See `BuildLocation`."""
        cores = ",".join(map(str, usable_cores()))
        command = [
            *(sys.executable, "-I", "-S", str(child_shim.__file__), str(os.getpid()), cores, "--"),
            *(sys.executable, "-P", str(_SCRIPT), recipe.to_json()),
            *map(str, (folders.graph, folders.plans, folders.timings)),
        ]
        process = _Process(command, {"CUDA_VISIBLE_DEVICES": self.settings.gpu.uuid})
        return _follow_script(process, on_progress, self.settings.timeout_seconds)


@dataclass(frozen=True)
class ContainerBuildLocation:
    """NVIDIA's tensorrt image of the server's own tag, which has the Python package."""

    settings: EngineSettings
    containers: Containers

    def identity(self) -> Mapping[str, str]:
        """See `BuildLocation`."""
        return {"image": self.containers.image(self.settings.image).id}

    def run(
        self, recipe: Recipe, folders: Folders, on_progress: Callable[[str], None]
    ) -> EngineFacts:
        """See `BuildLocation`."""
        script = ("python3", _MOUNTED_SCRIPT, recipe.to_json(), _GRAPH, _PLANS, _TIMINGS)
        task = _task(self.settings, script, folders, Mount(_SCRIPT, _MOUNTED_SCRIPT))
        running = self.containers.start(task)
        return _follow_script(running, on_progress, self.settings.timeout_seconds)


@dataclass(frozen=True)
class TrtexecBuildLocation:
    """The trtexec of the server's own image."""

    settings: EngineSettings
    containers: Containers

    def identity(self) -> Mapping[str, str]:
        """See `BuildLocation`."""
        return {"image": self.containers.image(self.settings.image).id}

    def run(
        self, recipe: Recipe, folders: Folders, on_progress: Callable[[str], None]
    ) -> EngineFacts:
        """See `BuildLocation`."""
        version = self._version(folders)
        command = trtexec.command(recipe, version.major, _GRAPH, _PLANS, _TIMINGS)

        def tell(line: str) -> None:
            if (progress := trtexec.progress_in(line)) is not None:
                on_progress(progress)

        running = self.containers.start(_task(self.settings, command, folders))
        ended = watch(running, tell, self.settings.timeout_seconds)
        wrong = trtexec.other_gpu(recipe, ended.lines)
        if ended.code != 0 or wrong is not None:
            raise ended.failure(wrong or trtexec.errors_in(ended.lines))
        return EngineFacts(str(version), recipe.gpu_name, recipe.compute_capability)

    def _version(self, folders: Folders) -> trtexec.Version:
        """Which TensorRT it is: the options depend on it."""
        task = _task(self.settings, (trtexec.TRTEXEC, "--help"), folders)
        ended = watch(self.containers.start(task), lambda _: None, _PROBE_SECONDS)
        version = trtexec.version_in(ended.lines)
        if version is None:
            raise ended.failure()
        if version.lacking is not None:
            raise BuildFailure(f"{self.settings.image}: {version.lacking}")
        return version


PLACES: dict[BuildPlace, Callable[[EngineSettings], BuildLocation]] = {
    "local": LocalBuildLocation,
    "container": lambda settings: ContainerBuildLocation(settings, ContainerEngine.connect()),
    "trtexec": lambda settings: TrtexecBuildLocation(settings, ContainerEngine.connect()),
}


def reap_builds(settings: EngineSettings | None) -> None:
    """Remove the containers of builds whose own process was killed, where there can be any.

    An engine of containers that cannot be asked is no hindrance here: whoever needs it next says
    so.
    """
    if settings is not None and settings.place != "local":
        with suppress(RequirementError, ContainerFailure):
            ContainerEngine.connect().reap()


def _task(
    settings: EngineSettings, command: tuple[str, ...], folders: Folders, *more: Mount
) -> ContainerTask:
    """A container for a build; the image's entrypoint stays, for it lets older drivers do."""
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


def _follow_script(
    running: Running, on_progress: Callable[[str], None], timeout_seconds: float
) -> EngineFacts:
    def tell(line: str) -> None:
        if (progress := script_output.progress_in(line)) is not None:
            on_progress(progress)

    ended: BuildTimedOut = watch(running, tell, timeout_seconds)
    return script_output.facts_of(ended)


class _Process:
    """A process of this machine, as `Running`."""

    def __init__(self, command: list[str], environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
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

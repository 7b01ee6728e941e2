"""The local Docker engine, its images, and the containers that this program starts.

Containers are never privileged and never restarted by the engine. Labels name the process that owns
a container, so that the next run removes those of a run that was killed.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import uuid4

from optimizer.errors import ContainerFailure, RequirementError
from optimizer.machine.docker_errors import (
    engine_errors,
    not_installed,
    refuses_limits,
    unreachable,
)

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_TIMEOUT_SECONDS = 60
_KILLED = 137

_LABEL = "triton-cost-optimizer"
_OWNER_PID = f"{_LABEL}.owner-pid"
_OWNER_STARTED = f"{_LABEL}.owner-started"
_OWNER_USER = f"{_LABEL}.owner-user"
_OWNER_MACHINE = f"{_LABEL}.owner-machine"

_STACK_BYTES = 64 * 2**20
"""Stack limit that NVIDIA's Triton images recommend, together with unlimited locked memory."""


@dataclass(frozen=True)
class Image:
    """A local image.

    Attributes:
        id: "sha256:..." of its content.
        environment: variables that it sets.
    """

    id: str
    environment: Mapping[str, str]


@dataclass(frozen=True)
class EngineContent:
    """Version, container runtimes and images of an engine.

    Attributes:
        runtimes: names; NVIDIA's is "nvidia".
        images: names with their tags.
    """

    version: str
    runtimes: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Mount:
    """A bind mount of a local file or folder."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class ContainerTask:
    """What a container is to run.

    Attributes:
        entrypoint: replaces the image's own; None keeps that.
        working_directory: in the container; None keeps the image's own.
        gpu_uuids: visible GPUs.
        cores: CPU cores that it may use; empty for all.
        shared_memory_bytes: size of its /dev/shm; None leaves the engine's default.
        shares_memory: whether its /dev/shm is that of the machine, whatever its size.
    """

    image: str
    command: tuple[str, ...]
    entrypoint: tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    working_directory: str | None = None
    mounts: tuple[Mount, ...] = ()
    gpu_uuids: tuple[str, ...] = ()
    cores: tuple[int, ...] = ()
    shared_memory_bytes: int | None = None
    shares_memory: bool = False
    network: Literal["host", "none"] = "none"


class ContainerEngine:
    """A Docker engine on this machine; `connect` returns it."""

    def __init__(self, client: DockerClient) -> None:
        self._client = client

    @classmethod
    def connect(cls) -> ContainerEngine:
        """Connect to the engine of DOCKER_HOST or of Docker's current context, else the local one.

        Raises:
            RequirementError: the SDK is missing, no engine answers, or permission is denied.
        """
        try:
            import docker
            from docker.errors import DockerException
        except ImportError as error:
            raise not_installed() from error
        try:
            return cls(docker.from_env(timeout=_TIMEOUT_SECONDS))
        except DockerException as error:
            raise unreachable(error) from error

    @cached_property
    def _security(self) -> frozenset[str]:
        """Names of the engine's security options, such as "seccomp", "userns" and "rootless"."""
        options = self._client.info().get("SecurityOptions") or ()
        return frozenset(each.split(",")[0].removeprefix("name=") for each in options)

    @property
    def rootless(self) -> bool:
        """Whether the engine runs without root, so that its host network is not the machine's.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        with engine_errors("ask for the engine's options"):
            return "rootless" in self._security

    def content(self) -> EngineContent:
        """Return version, runtimes and images.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        with engine_errors("list the engine's images"):
            about = self._client.info()
            # The SDK's own list would query every image by itself.
            images = self._client.api.images()
        names = (name for image in images for name in image["RepoTags"] or ())
        return EngineContent(
            version=str(about["ServerVersion"]),
            runtimes=tuple(sorted(about["Runtimes"])),
            images=tuple(sorted(name for name in names if name != "<none>:<none>")),
        )

    def image(self, name: str) -> Image:
        """Return a local image; none is pulled.

        Raises:
            RequirementError: there is none; the message has the command that pulls it.
            ContainerFailure: the engine does not answer.
        """
        with engine_errors(f"look for the image {name}", name):
            image = self._client.images.get(name)
        pairs = (entry.partition("=") for entry in image.attrs["Config"]["Env"] or ())
        return Image(str(image.id), {key: value for key, _, value in pairs})

    def start(self, task: ContainerTask) -> RunningContainer:
        """Start a container that this process owns until it is stopped.

        Raises:
            RequirementError: the image is missing, or the engine cannot provide GPUs.
            ContainerFailure: the engine refuses, or does not answer.
        """
        from docker.errors import APIError

        with engine_errors(f"start a container of {task.image}", task.image):
            try:
                return RunningContainer(self._start(task, locked_memory=True))
            except APIError as error:
                # An engine without root, or in a sandbox, may not raise its own limit.
                if not refuses_limits(error):
                    raise
                return RunningContainer(self._start(task, locked_memory=False))

    def _start(self, task: ContainerTask, *, locked_memory: bool) -> Container:
        container = self._client.containers.create(
            task.image,
            list(task.command),
            name=f"{_LABEL}-{os.getpid()}-{uuid4().hex[:8]}",
            labels=_owner(),
            # Root of a user namespace of its own could not read this user's plans, nor write them.
            userns_mode="host" if "userns" in self._security else None,
            **_settings(task, locked_memory=locked_memory),
        )
        try:
            container.start()
        except BaseException:
            _remove(container)
            raise
        return container

    def reap(self) -> tuple[str, ...]:
        """Remove containers of this user's processes that have ended; return their names.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        mine = [f"{key}={_owner()[key]}" for key in (_OWNER_USER, _OWNER_MACHINE)]
        reaped = []
        with engine_errors("look for containers of runs that were killed"):
            listed = self._client.containers.list(
                all=True, filters={"label": mine}, ignore_removed=True
            )
            for container in listed:
                if _started(container.labels[_OWNER_PID]) != container.labels[_OWNER_STARTED]:
                    _remove(container)
                    reaped.append(str(container.name))
        return tuple(reaped)


def remove_containers_of_the_dead() -> None:
    """Remove the containers that killed processes of this user left, with what runs in them.

    A Docker engine that does not answer is ignored here: whatever needs it reports it.
    """
    with suppress(RequirementError, ContainerFailure):
        ContainerEngine.connect().reap()


class RunningContainer:
    """A started container."""

    def __init__(self, container: Container) -> None:
        self._container = container

    @property
    def name(self) -> str:
        """Name in the engine."""
        return str(self._container.name)

    def exit_code(self) -> int | None:
        """Return its exit code (128 + N after signal N; 137 if it was removed), None while it runs.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        state = self._state()
        if state is None:
            return _KILLED
        return None if state["Status"] in ("created", "running") else int(state["ExitCode"])

    def out_of_memory(self) -> bool:
        """Return whether the kernel killed a process in it because memory ran out."""
        state = self._state()
        return state is not None and bool(state["OOMKilled"])

    def pid(self) -> int | None:
        """Return this machine's id of its first process, None where it has ended."""
        state = self._state()
        return int(state["Pid"]) or None if state is not None else None

    def lines(self) -> Iterator[str]:
        """Yield its output line by line, until it has ended or the engine is gone."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        received, rest = 0, b""
        with suppress(DockerException, RequestException, OSError):
            for chunk in self._container.logs(stream=True, follow=True):
                *whole, rest = (rest + chunk).split(b"\n")
                received += len(chunk)
                yield from map(_text, whole)
            # Older engines close the stream before its end.
            *whole, rest = (rest + self._container.logs()[received:]).split(b"\n")
            yield from map(_text, whole)
        if rest:
            yield _text(rest)

    def wait(self, timeout_seconds: float) -> int | None:
        """Return its exit code once it has ended, None where it runs after `timeout_seconds`.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        from docker.errors import NotFound
        from requests.exceptions import ConnectionError as NoConnection
        from requests.exceptions import ReadTimeout

        with engine_errors(f"wait for the container {self.name}"):
            try:
                return int(self._container.wait(timeout=timeout_seconds)["StatusCode"])
            except (NotFound, ReadTimeout, NoConnection):
                # A timeout is one or the other, depending on the connection.
                return self.exit_code()

    def stop(self, grace_seconds: float) -> None:
        """Send SIGTERM, after `grace_seconds` SIGKILL, and remove it; no error where it is gone.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        from docker.errors import NotFound

        with engine_errors(f"stop the container {self.name}"):
            with suppress(NotFound):
                self._container.stop(timeout=max(1, round(grace_seconds)))
            _remove(self._container)

    def memory_bytes(self) -> int | None:
        """Return its memory with /dev/shm and without the page cache, None where it has ended.

        Older engines take 2 s.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        from docker.errors import NotFound

        with engine_errors(f"measure the container {self.name}"):
            try:
                answer = self._container.stats(stream=False, one_shot=True)
            except NotFound:
                return None
        return _memory_in_use(cast(Mapping[str, Any], answer)["memory_stats"])

    def _state(self) -> Mapping[str, Any] | None:
        """Return the engine's state of it, None where it has been removed."""
        from docker.errors import NotFound

        with engine_errors(f"inspect the container {self.name}"):
            try:
                self._container.reload()
            except NotFound:
                return None
        return cast(Mapping[str, Any], self._container.attrs["State"])


def _settings(task: ContainerTask, *, locked_memory: bool) -> dict[str, Any]:
    """Return the SDK's arguments for a task."""
    from docker import types

    # With NVIDIA's runtime as the default, their images see every GPU unless this is set.
    hidden = {} if task.gpu_uuids else {"NVIDIA_VISIBLE_DEVICES": "void"}
    # CUDA would order GPUs by speed; the task's order is the driver's.
    ordered = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"} if task.gpu_uuids else {}
    gpus = types.DeviceRequest(device_ids=list(task.gpu_uuids), capabilities=[["gpu"]])
    limits = {"stack": _STACK_BYTES, **({"memlock": -1} if locked_memory else {})}
    return {
        "entrypoint": list(task.entrypoint) if task.entrypoint is not None else None,
        "environment": {**hidden, **ordered, **dict(task.environment)},
        "working_dir": task.working_directory,
        "mounts": [
            types.Mount(each.target, str(each.source), "bind", read_only=each.read_only)
            for each in task.mounts
        ],
        "device_requests": [gpus] if task.gpu_uuids else None,
        "cpuset_cpus": ",".join(map(str, task.cores)) or None,
        "shm_size": None if task.shares_memory else task.shared_memory_bytes,
        "ipc_mode": "host" if task.shares_memory else None,
        "ulimits": [types.Ulimit(name=k, soft=n, hard=n) for k, n in limits.items()],
        "network_mode": task.network,
        "security_opt": ["no-new-privileges:true"],
        "cap_drop": ["ALL"],
        # Root in the container reads what the umask keeps from other users, such as 0700 folders.
        "cap_add": ["DAC_OVERRIDE"],
        "init": True,
    }


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removesuffix("\r")


def _memory_in_use(memory: Mapping[str, Any]) -> int | None:
    """Return a control group's memory without its page cache, from the engine's statistics."""
    if not memory.get("usage"):
        return None
    # Version 1 of control groups has each figure without and with its children.
    pages = memory["stats"]
    prefix = "total_" if "total_inactive_file" in pages else ""
    files = sum(pages[f"{prefix}{kind}"] for kind in ("active_file", "inactive_file"))
    return int(memory["usage"] - files)


def _owner() -> dict[str, str]:
    """Return labels of this process; its id may be reused, but not with the same start time."""
    pid = str(os.getpid())
    return {
        _OWNER_PID: pid,
        _OWNER_STARTED: str(_started(pid)),
        _OWNER_USER: str(os.getuid()),
        _OWNER_MACHINE: socket.gethostname(),
    }


def _started(pid: str) -> str | None:
    """Return a process's start time in clock ticks since boot; None where it is gone."""
    try:
        _, _, after_name = Path("/proc", pid, "stat").read_text().rpartition(")")
    except OSError:
        return None
    state, *fields = after_name.split()
    return None if state in "ZX" else fields[18]


def _remove(container: Container) -> None:
    """Remove a container, running or not; no error where it is gone or being removed."""
    from docker.errors import APIError

    try:
        container.remove(force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise

"""Docker's engine, its images, and containers that carry the process which owns them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import uuid4

from optimizer.machine.docker_errors import engine_errors, not_installed, unreachable

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

_ANSWER_SECONDS = 60
_KILLED = 137

_LABEL = "triton-cost-optimizer"
_OWNER_PID = f"{_LABEL}.owner-pid"
_OWNER_STARTED = f"{_LABEL}.owner-started"
_OWNER_USER = f"{_LABEL}.owner-user"
_OWNER_MACHINE = f"{_LABEL}.owner-machine"

_STACK_BYTES = 64 * 2**20
"""With locked memory unbounded, what NVIDIA's Triton images ask for at their start."""


@dataclass(frozen=True)
class Image:
    """An image that the engine has.

    Attributes:
        id: "sha256:..." of its content.
        environment: variables that it sets.
    """

    id: str
    environment: Mapping[str, str]

    @property
    def tensorrt_version(self) -> str | None:
        """Release of TensorRT in one of NVIDIA's images, such as "10.8.0.43"; None elsewhere."""
        return self.environment.get("TRT_VERSION", "").partition("+")[0] or None


@dataclass(frozen=True)
class EngineContent:
    """What an engine says of itself.

    Attributes:
        runtimes: names of those that may run its containers; NVIDIA's is "nvidia".
        images: names of those that it has, with their tags.
    """

    version: str
    runtimes: tuple[str, ...]
    images: tuple[str, ...]


@dataclass(frozen=True)
class Mount:
    """A file or folder of this machine inside a container."""

    source: Path
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class ContainerTask:
    """What a container is to run.

    Attributes:
        entrypoint: in place of the image's own; None keeps that.
        working_directory: in the container; None keeps the image's own.
        gpu_uuids: the GPUs that it sees; empty for none.
        cores: CPU cores that it keeps to; empty for all.
        shared_memory_bytes: size of its /dev/shm; None leaves the engine's default.
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
    network: Literal["host", "none"] = "none"


class ContainerEngine:
    """A Docker engine on this machine, see `connect`."""

    def __init__(self, client: DockerClient) -> None:
        self._client = client

    @classmethod
    def connect(cls) -> ContainerEngine:
        """The engine that DOCKER_HOST or Docker's current context names, else this machine's own.

        Raises:
            RequirementError: the SDK is not installed, no engine answers, or it may not be used.
        """
        try:
            import docker
            from docker.errors import DockerException
        except ImportError as error:
            raise not_installed() from error
        try:
            return cls(docker.from_env(timeout=_ANSWER_SECONDS))
        except DockerException as error:
            raise unreachable(str(error)) from error

    def content(self) -> EngineContent:
        """What it is and has.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        with engine_errors("ask the engine what it has"):
            about = self._client.info()
            # Only the names: the SDK's own list asks for every image on its own.
            held = self._client.api.images()
        names = (name for image in held for name in image["RepoTags"] or ())
        return EngineContent(
            version=str(about["ServerVersion"]),
            runtimes=tuple(sorted(about["Runtimes"])),
            images=tuple(sorted(name for name in names if name != "<none>:<none>")),
        )

    def image(self, name: str) -> Image:
        """An image that is there; none is fetched.

        Raises:
            RequirementError: it is not there; the message names it and the command that fetches it.
            ContainerFailure: the engine does not answer.
        """
        with engine_errors(f"look for the image {name}", name):
            found = self._client.images.get(name)
        pairs = (entry.partition("=") for entry in found.attrs["Config"]["Env"] or ())
        return Image(str(found.id), {key: value for key, _, value in pairs})

    def start(self, task: ContainerTask) -> RunningContainer:
        """Start a container, which is this process's own until it is stopped.

        Raises:
            RequirementError: the image is not there, or the engine cannot hand out GPUs.
            ContainerFailure: the engine refuses, or does not answer.
        """
        from docker.errors import APIError

        with engine_errors(f"start a container of {task.image}", task.image):
            try:
                return RunningContainer(self._start(task, locked_memory=True))
            except APIError as error:
                # An engine without root, or in a sandbox, may not raise its own limit.
                if "setting rlimit" not in str(error):
                    raise
                return RunningContainer(self._start(task, locked_memory=False))

    def _start(self, task: ContainerTask, *, locked_memory: bool) -> Container:
        container = self._client.containers.create(
            task.image,
            list(task.command),
            name=f"{_LABEL}-{os.getpid()}-{uuid4().hex[:8]}",
            labels=_owner(),
            **_settings(task, locked_memory=locked_memory),
        )
        try:
            container.start()
        except BaseException:
            _remove(container)
            raise
        return container

    def reap(self) -> tuple[str, ...]:
        """Remove what this user's dead processes have left here; returns the containers' names.

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


class RunningContainer:
    """A container that was started."""

    def __init__(self, container: Container) -> None:
        self._container = container

    @property
    def name(self) -> str:
        """What the engine calls it."""
        return str(self._container.name)

    def exit_code(self) -> int | None:
        """Its exit code (128 + N after signal N), None while it runs; 137 where it was removed.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        state = self._state()
        if state is None:
            return _KILLED
        return None if state["Status"] in ("created", "running") else int(state["ExitCode"])

    def out_of_memory(self) -> bool:
        """Whether the kernel has ended something in it because memory ran out."""
        state = self._state()
        return state is not None and bool(state["OOMKilled"])

    def pid(self) -> int | None:
        """This machine's number of its first process, None where it has ended."""
        state = self._state()
        return int(state["Pid"]) or None if state is not None else None

    def lines(self) -> Iterator[str]:
        """Its output line by line, until it has ended or the engine is gone."""
        from docker.errors import DockerException
        from requests.exceptions import RequestException

        seen, rest = 0, b""
        with suppress(DockerException, RequestException, OSError):
            for chunk in self._container.logs(stream=True, follow=True):
                *whole, rest = (rest + chunk).split(b"\n")
                seen += len(chunk)
                yield from map(_text, whole)
            # Older engines leave the stream before its last words.
            *whole, rest = (rest + self._container.logs()[seen:]).split(b"\n")
            yield from map(_text, whole)
        if rest:
            yield _text(rest)

    def wait(self, timeout_seconds: float) -> int | None:
        """Its exit code once it has ended, None when it still runs after `timeout_seconds`.

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
                # Which of the two an answer that is late is depends on the connection.
                return self.exit_code()

    def stop(self, grace_seconds: float) -> None:
        """Have it end by SIGTERM, by SIGKILL after `grace_seconds`, and remove it.

        No error where it is gone.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        from docker.errors import NotFound

        with engine_errors(f"stop the container {self.name}"):
            with suppress(NotFound):
                self._container.stop(timeout=max(1, round(grace_seconds)))
            _remove(self._container)

    def memory_bytes(self) -> int | None:
        """Memory that it holds, None where it has ended; older engines take 2 s to tell.

        File pages that the kernel may drop do not count; /dev/shm does.

        Raises:
            ContainerFailure: the engine does not answer.
        """
        from docker.errors import NotFound

        with engine_errors(f"measure the container {self.name}"):
            try:
                answer = self._container.stats(stream=False, one_shot=True)
            except NotFound:
                return None
        return _held(cast(Mapping[str, Any], answer)["memory_stats"])

    def _state(self) -> Mapping[str, Any] | None:
        """What the engine says of it, None where it has been removed."""
        from docker.errors import NotFound

        with engine_errors(f"ask for the container {self.name}"):
            try:
                self._container.reload()
            except NotFound:
                return None
        return cast(Mapping[str, Any], self._container.attrs["State"])


def _settings(task: ContainerTask, *, locked_memory: bool) -> dict[str, Any]:
    """The task in the words of the SDK."""
    from docker import types

    # Where NVIDIA's runtime is the engine's default, an image of theirs sees every GPU unless told.
    hidden = {} if task.gpu_uuids else {"NVIDIA_VISIBLE_DEVICES": "void"}
    # CUDA would put the fastest first; the task's order is the driver's.
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
        "shm_size": task.shared_memory_bytes,
        "ulimits": [types.Ulimit(name=k, soft=n, hard=n) for k, n in limits.items()],
        "network_mode": task.network,
        "init": True,
    }


def _text(line: bytes) -> str:
    return line.decode(errors="replace").removesuffix("\r")


def _held(memory: Mapping[str, Any]) -> int | None:
    """The engine's statistics of a control group's memory, less its file pages."""
    if not memory.get("usage"):
        return None
    # The first version of control groups tells each figure without and with its children.
    pages = memory["stats"]
    prefix = "total_" if "total_inactive_file" in pages else ""
    files = sum(pages[f"{prefix}{kind}"] for kind in ("active_file", "inactive_file"))
    return int(memory["usage"] - files)


def _owner() -> dict[str, str]:
    """This process, as labels: its number may be another's later, not so with when it started."""
    pid = str(os.getpid())
    return {
        _OWNER_PID: pid,
        _OWNER_STARTED: str(_started(pid)),
        _OWNER_USER: str(os.getuid()),
        _OWNER_MACHINE: socket.gethostname(),
    }


def _started(pid: str) -> str | None:
    """When a process was started, in clock ticks since this machine was; None where it is gone."""
    try:
        _, _, after_name = Path("/proc", pid, "stat").read_text().rpartition(")")
    except OSError:
        return None
    state, *fields = after_name.split()
    return None if state in "ZX" else fields[18]


def _remove(container: Container) -> None:
    """Remove a container, running or not; one that is gone, or being removed, is no error."""
    from docker.errors import APIError

    try:
        container.remove(force=True, v=True)
    except APIError as error:
        if error.status_code not in (404, 409):
            raise

"""Triton in a container of this machine's Docker engine, on this machine's own network.

With a network of its own every request would pass Docker's address translation or its proxy, and
that would be measured; so it listens on 127.0.0.1 of the machine, as an embedded server does.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple
from pathlib import Path

import psutil

from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ContainerFailure, ServerFailure, storage_errors
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Mount, RunningContainer
from optimizer.machine.slots import Slot
from optimizer.triton import processes
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.launcher import (
    STOP_SECONDS,
    PickPorts,
    RunningServer,
    arguments,
    free_ports,
    last_errors,
    on_free_ports,
    wait_ready,
)

_LOG_SECONDS = 2.0
_FIRST_SIGNAL = 128
_NOBODY = 2**31 - 1
"""Number of no process: a container that had ended before it was asked for its own."""


class DockerLauncher:
    """Starts tritonserver in containers.

    A container of an optimizer that was killed runs on until the next one starts a server: that is
    when it is removed.

    Args:
        repository: served in explicit mode; made where it is missing. The container sees it, for
            reading alone, where it is.
        read: further folders that it sees so, such as those that links in the repository lead to.
        log: appended to.
        pick_ports: gives the three ports to try; called again when one is taken meanwhile.
    """

    def __init__(
        self,
        engine: ContainerEngine,
        host: ContainerHost,
        repository: Path,
        read: Sequence[Path],
        log: Path,
        pick_ports: PickPorts = free_ports,
    ) -> None:
        self._engine = engine
        self._host = host
        self._repository = repository.resolve()
        self._read = [path.resolve() for path in read]
        self._log = log
        self._pick_ports = pick_ports

    def start(self, options: ServerOptions, slot: Slot) -> RunningServer:
        """See `ServerLauncher`. Takes other ports when one of those picked is taken.

        Raises:
            RequirementError: the image is gone, or the engine cannot hand out GPUs.
        """
        try:
            self._engine.reap()
            return on_free_ports(lambda at: self._start(options, slot, at), self._pick_ports)
        except ContainerFailure as error:
            raise ServerFailure(str(error)) from error

    def _start(self, options: ServerOptions, slot: Slot, endpoint: Endpoint) -> RunningServer:
        with storage_errors(self._repository):
            self._repository.mkdir(parents=True, exist_ok=True)
        log = _Log(self._log)
        container = self._engine.start(self._task(options, slot, endpoint))
        server = _ContainerServer(container, endpoint, log)
        wait_ready(server, server.listens)
        return server

    def _task(self, options: ServerOptions, slot: Slot, endpoint: Endpoint) -> ContainerTask:
        # The name alone: Triton starts the processes of Python models by a line of shell in which
        # the path is not quoted, and a folder above may be called anything.
        command = arguments(options, slot, endpoint, self._repository.name)
        return ContainerTask(
            self._host.image,
            ("tritonserver", *command),
            working_directory=str(self._repository.parent),
            mounts=tuple(Mount(path, str(path)) for path in (self._repository, *self._read)),
            gpu_uuids=slot.gpu_uuids,
            cores=slot.cores,
            shared_memory_bytes=self._host.shared_memory_bytes,
            network="host",
        )


class _Log:
    """The server's log file, to which a container's output is copied while that runs."""

    def __init__(self, path: Path) -> None:
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        self._path = path
        self._start = self._file.tell()
        self._copying: threading.Thread | None = None

    def copy(self, container: RunningContainer) -> None:
        self._copying = threading.Thread(target=self._copy, args=(container,), daemon=True)
        self._copying.start()

    def _copy(self, container: RunningContainer) -> None:
        with self._file:
            for line in container.lines():
                # A server whose log finds no room goes on all the same.
                with suppress(OSError):
                    self._file.write(f"{line}\n".encode())
                    self._file.flush()

    def since_start(self) -> str:
        with self._path.open("rb") as log:
            log.seek(self._start)
            return log.read().decode(errors="replace")

    def wait(self) -> None:
        """Wait for the last words of a container that has ended."""
        if self._copying is not None:
            self._copying.join(_LOG_SECONDS)


class _ContainerServer:
    def __init__(self, container: RunningContainer, endpoint: Endpoint, log: _Log) -> None:
        self._container = container
        self._control = ServerControl(endpoint)
        self._endpoint = endpoint
        self._log = log
        self._first = container.pid() or _NOBODY
        log.copy(container)

    @property
    def control(self) -> ServerControl:
        return self._control

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    def listens(self) -> bool:
        """Whether it holds all of its ports."""
        wanted = {int(address.rpartition(":")[2]) for address in astuple(self._endpoint)}
        try:
            return wanted <= processes.listening_below(self._first)
        except psutil.AccessDenied:
            # Of another user's processes only that somebody listens is seen. It tries its metrics
            # last: who has that, where it is not this one, shows at the first load.
            said = f'Metrics Service at {self._endpoint.metrics}"' in self.log_since_start()
            return said and wanted <= processes.listening_anywhere()

    def exit_reason(self) -> str | None:
        try:
            code = self._container.exit_code()
            if code is None:
                return None
            self._log.wait()
            memory = " for want of memory" if self._container.out_of_memory() else ""
        except ContainerFailure as error:
            return str(error)
        return f"the server ended with {_how(code)}{memory}; {last_errors(self.log_since_start())}"

    def log_since_start(self) -> str:
        return self._log.since_start()

    def memory_bytes(self) -> int | None:
        # The container's first process starts the server, and gathers what the models leave.
        with suppress(psutil.Error):
            for child in psutil.Process(self._first).children():
                return processes.resident_bytes(child.pid)
        return None

    def memory_with_models_bytes(self) -> int | None:
        """See `RunningServer`; by the engine where this user may not look into root's processes."""
        seen = processes.memory_bytes(self._first)
        if seen is not None:
            return seen
        try:
            return self._container.memory_bytes()
        except ContainerFailure:
            return None

    def model_processes(self) -> Mapping[int, str] | None:
        return processes.model_statuses(self._first)

    def cpu_seconds(self) -> float | None:
        return processes.cpu_seconds(self._first)

    def stop(self) -> None:
        self._control.close()
        # What an engine that is gone has left is removed at the next start.
        with suppress(ContainerFailure):
            self._container.stop(STOP_SECONDS)
        self._log.wait()


def _how(code: int) -> str:
    """By Docker's own convention for a process that a signal has ended."""
    with suppress(ValueError):
        return f"signal {signal.Signals(code - _FIRST_SIGNAL).name}"
    return f"exit code {code}"

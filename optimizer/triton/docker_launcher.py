"""Triton in a container of the local Docker engine, on the host network.

In a network of its own every request would pass Docker's address translation or proxy, which would
be measured too. The server therefore listens on the machine's 127.0.0.1.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from optimizer.configuration.hosting import ContainerHost
from optimizer.configuration.releases import ImageContent, content_of
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ContainerFailure, ServerFailure, storage_errors
from optimizer.files.log_file import open_log
from optimizer.machine.docker_engine import ContainerEngine, ContainerTask, Mount, RunningContainer
from optimizer.machine.slots import Slot
from optimizer.triton import processes
from optimizer.triton.control import Endpoint
from optimizer.triton.launcher import (
    STOP_SECONDS,
    PickPorts,
    RunningServer,
    arguments,
    free_ports,
    last_errors,
    on_free_ports,
    read_log,
    wait_ready,
)
from optimizer.triton.server_options import shared_memory_flags
from optimizer.triton.shared_memory import region_prefix, remove_regions_of_the_dead

_LOG_SECONDS = 2.0
_FIRST_SIGNAL = 128
_NO_PROCESS = 2**31 - 1
"""Process id in place of that of a container that has ended already."""


class DockerLauncher:
    """Starts tritonserver in containers.

    The containers of optimizers that were killed are removed at every start.

    Args:
        repository: served in explicit mode; created when needed, and mounted read-only under the
            same path.
        read: other folders to mount, such as the targets of links in the repository.
        log: file that the server's log is appended to.
        pick_ports: returns three ports to try; called again when one is in use.
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

    def start(
        self, options: ServerOptions, slot: Slot, *, completes: bool = False
    ) -> RunningServer:
        """Start a container, on other ports when one of those picked is in use.

        Raises:
            RequirementError: the image is gone, or the engine cannot provide GPUs.
            ServerFailure: the server does not come up; the message holds the end of its log.
        """
        try:
            self._engine.reap()
            remove_regions_of_the_dead()
            start = partial(self._start, options, slot, completes=completes)
            return on_free_ports(start, self._pick_ports)
        except ContainerFailure as error:
            raise ServerFailure(str(error)) from error

    def _start(
        self, options: ServerOptions, slot: Slot, endpoint: Endpoint, *, completes: bool
    ) -> RunningServer:
        with storage_errors(self._repository):
            self._repository.mkdir(parents=True, exist_ok=True)
        log = _Log(self._log)
        # Before the start: where the engine does not answer, no container is left running.
        tensorrt = self._content.tensorrt
        container = self._engine.start(self._task(options, slot, endpoint, completes=completes))
        server = _ContainerServer(container, endpoint, log)
        server.tensorrt = tensorrt
        wait_ready(server, server.listens)
        return server

    def _task(
        self, options: ServerOptions, slot: Slot, endpoint: Endpoint, *, completes: bool = False
    ) -> ContainerTask:
        # A relative path: Triton starts the processes of Python models by an unquoted shell
        # command, and the names of parent folders may need quotes.
        own = self._shared_memory_arguments() if options.client_shared_memory else []
        name = self._repository.name
        command = arguments(options, slot, endpoint, name, *own, completes=completes)
        return ContainerTask(
            self._host.image,
            ("tritonserver", *command),
            working_directory=str(self._repository.parent),
            mounts=tuple(Mount(path, str(path)) for path in (self._repository, *self._read)),
            gpu_uuids=slot.gpu_uuids,
            cores=slot.cores,
            shared_memory_bytes=self._host.shared_memory_bytes,
            shares_memory=options.client_shared_memory,
            network="host",
        )

    def _shared_memory_arguments(self) -> list[str]:
        """Return the arguments of a server in the machine's own shared memory.

        The names of its regions are then this program's, which removes what a killed one leaves.
        """
        prefix = f"--backend-config=python,shm-region-prefix-name={region_prefix(0)}server_"
        return [prefix, *shared_memory_flags(self._content.triton)]

    @property
    def _content(self) -> ImageContent:
        return content_of(self._host.image, self._engine.image(self._host.image).environment)


class _Log:
    """The server's log file, to which a container's output is copied on a thread."""

    def __init__(self, path: Path) -> None:
        with storage_errors(path):
            self._file = open_log(path)
        self._path = path
        self._start = self._file.tell()
        self._copying: threading.Thread | None = None

    def copy(self, container: RunningContainer) -> None:
        self._copying = threading.Thread(target=self._copy, args=(container,), daemon=True)
        self._copying.start()

    def _copy(self, container: RunningContainer) -> None:
        with self._file:
            for line in container.lines():
                # A full disk does not stop the server.
                with suppress(OSError):
                    self._file.write(f"{line}\n".encode())
                    self._file.flush()

    def since_start(self) -> str:
        return read_log(self._path, self._start)

    def wait(self) -> None:
        """Wait until the output of a container that has ended is copied."""
        if self._copying is not None:
            self._copying.join(_LOG_SECONDS)


class _ContainerServer(RunningServer):
    def __init__(self, container: RunningContainer, endpoint: Endpoint, log: _Log) -> None:
        self._first = container.pid() or _NO_PROCESS
        super().__init__(endpoint, self._first)
        self._container = container
        self._log = log
        log.copy(container)

    def listens(self) -> bool:
        """Return whether the server listens on all of its ports."""
        ports = self.endpoint.ports
        try:
            return ports <= processes.listening_below(self._first)
        except psutil.AccessDenied:
            # The ports of another user's process are not attributed to it. Triton starts its
            # metrics service last, so its log tells that it has tried all ports.
            started = f'Metrics Service at {self.endpoint.metrics}"' in self.log_since_start()
            return started and ports <= processes.listening_anywhere()

    def exit_reason(self) -> str | None:
        try:
            code = self._container.exit_code()
            if code is None:
                return None
            self._log.wait()
            memory = " for want of memory" if self._container.out_of_memory() else ""
        except ContainerFailure as error:
            return str(error)
        errors = last_errors(self.log_since_start())
        return f"the server ended with {_exit_text(code)}{memory}; {errors}"

    def log_since_start(self) -> str:
        return self._log.since_start()

    def memory_bytes(self) -> int | None:
        # The container's first process is an init that starts the server.
        with suppress(psutil.Error):
            for child in psutil.Process(self._first).children():
                return processes.resident_bytes(child.pid)
        return None

    def memory_with_models_bytes(self) -> int | None:
        """Return the memory; by the Docker engine where root's processes cannot be inspected."""
        in_use = super().memory_with_models_bytes()
        with suppress(ContainerFailure):
            return in_use if in_use is not None else self._container.memory_bytes()
        return None

    def stop(self) -> None:
        self.control.close()
        # Containers of an engine that is gone are removed at the next start.
        with suppress(ContainerFailure):
            self._container.stop(STOP_SECONDS)
        self._log.wait()


def _exit_text(code: int) -> str:
    """Describe an exit code; Docker adds 128 to the number of a signal."""
    with suppress(ValueError):
        return f"signal {signal.Signals(code - _FIRST_SIGNAL).name}"
    return f"exit code {code}"

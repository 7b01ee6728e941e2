"""Start and stop servers: the interface of launchers, and what they share."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Protocol

from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure
from optimizer.machine.slots import Slot
from optimizer.triton import processes
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.server_options import option_flags

START_SECONDS = 300.0
"""On a cold disk the libraries of NVIDIA's image are read for minutes. A server that ends is
noticed at once."""

STOP_SECONDS = 8.0
"""Longer than the time that `arguments` gives the server to unload its models at exit."""

_EXIT_TIMEOUT_SECONDS = 3
_PORT_ATTEMPTS = 3
_PORT_IN_USE = "in use"
"""What Triton's log says of a port that another process holds."""

_HARMLESS_ERROR = "CudaDriverHelper has not been initialized"
"""Error in the log of every server without a GPU."""


class PortInUse(ServerFailure):
    """The server could not listen, since another process holds one of its ports."""


PickPorts = Callable[[int], Sequence[int]]


class RunningServer(ABC):
    """A server that was started, or that was running already.

    Figures of its processes are None where they are not available.

    Args:
        pid: first process of the server; None where it does not run on this machine.

    Attributes:
        control: the client that controls it; `stop` closes it.
        tensorrt: version of TensorRT in its image; None where that is unknown.
    """

    tensorrt: str | None = None

    def __init__(self, endpoint: Endpoint, pid: int | None = None) -> None:
        self.endpoint = endpoint
        self.control = ServerControl(endpoint)
        self.pid = pid

    @abstractmethod
    def exit_reason(self) -> str | None:
        """Return why it no longer runs, None while it does."""

    @abstractmethod
    def stop(self) -> None:
        """Stop it and wait until nothing of it is left; no error when it has ended already.

        A server that was not started here only unloads what `control` loaded, and runs on.
        """

    def log_since_start(self) -> str:
        """Return its log so far; empty where the log is not available."""
        return ""

    def memory_bytes(self) -> int | None:
        """Return the resident memory of the server process."""
        return processes.resident_bytes(self.pid) if self.pid is not None else None

    def memory_with_models_bytes(self) -> int | None:
        """Return the memory of the server and its model processes, shared memory divided."""
        return processes.memory_bytes(self.pid) if self.pid is not None else None

    def model_processes(self) -> Mapping[int, str] | None:
        """Return psutil's status of every Python model's process by its id."""
        return processes.model_statuses(self.pid) if self.pid is not None else None

    def cpu_seconds(self) -> Mapping[int, float] | None:
        """Return the CPU time so far of the server's and its models' processes, by process id."""
        return processes.cpu_seconds(self.pid) if self.pid is not None else None


class ServerLauncher(Protocol):
    """Starts servers over one model repository, in explicit model-control mode."""

    def start(
        self, options: ServerOptions, slot: Slot, *, completes: bool = False
    ) -> RunningServer:
        """Start a server and return when it is ready.

        Args:
            completes: whether it completes the configurations of models.

        Raises:
            ServerFailure: when it does not come up; the message holds the end of its log.
        """


def free_ports(count: int) -> list[int]:
    """Return ports on 127.0.0.1 that are free now; another process may take them meanwhile."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def on_free_ports(
    start: Callable[[Endpoint], RunningServer], pick_ports: PickPorts
) -> RunningServer:
    """Start a server on 127.0.0.1, on other ports when one of those picked is in use."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        try:
            return start(Endpoint(*(f"127.0.0.1:{port}" for port in pick_ports(3))))
        except PortInUse:
            if attempt == _PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def arguments(
    options: ServerOptions,
    slot: Slot,
    endpoint: Endpoint,
    repository: str,
    *own: str,
    completes: bool = False,
) -> list[str]:
    """Return the arguments of tritonserver.

    Args:
        repository: path as the server sees it.
        own: arguments of one launcher, such as the backend directory.
        completes: whether the server completes the configurations of models.
    """
    listening = [
        f"--{service}-{part}={value}"
        for service, address in zip(("grpc", "http", "metrics"), astuple(endpoint), strict=True)
        for part, value in zip(("address", "port"), address.rsplit(":", 1), strict=True)
    ]
    return [
        f"--model-repository={repository}",
        *own,
        "--model-control-mode=explicit",
        # Auto-complete would enable batching where a trial disables it.
        *([] if completes else ["--disable-auto-complete-config"]),
        *listening,
        *(["--allow-gpu-metrics=false"] if not slot.gpu_uuids else []),
        f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
        *option_flags(options),
    ]


def wait_ready(server: RunningServer, listens: Callable[[], bool]) -> None:
    """Wait until a server is ready; stop it where it does not come up.

    Args:
        listens: returns whether it listens on all of its ports. It is ready on the first before it
            opens the last, and exits when that is in use, perhaps by another server that is ready.

    Raises:
        PortInUse: when another process holds one of its ports.
        ServerFailure: for every other reason.
    """
    end = time.monotonic() + START_SECONDS
    try:
        while not (server.control.ready() and listens()):
            if (reason := server.exit_reason()) is not None:
                raise (PortInUse if _PORT_IN_USE in reason else ServerFailure)(reason)
            if time.monotonic() > end:
                raise ServerFailure(
                    f"the server was not ready within {START_SECONDS:g} s"
                    + server.control.last_error_text
                )
            time.sleep(0.02)
    except BaseException:
        server.stop()
        raise


def read_log(path: Path, start: int) -> str:
    """Return what was appended to a log file since it had `start` bytes."""
    with path.open("rb") as log:
        log.seek(start)
        return log.read().decode(errors="replace")


def last_errors(log: str, lines: int = 3) -> str:
    """Return the last error lines of a Triton log in one line, or its last line without errors."""
    errors = re.findall(r"^E\d{4} \S+ \d+ \S+\] (.*)$", log, re.MULTILINE)
    errors = [text for text in errors if _HARMLESS_ERROR not in text]
    if not errors:
        log_lines = log.strip().splitlines()
        return f"its log ends: {log_lines[-1].strip()}" if log_lines else "its log is empty"
    return "its log says: " + " / ".join(text.strip().strip('"') for text in errors[-lines:])

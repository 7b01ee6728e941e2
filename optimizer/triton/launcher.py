"""Starting and stopping a server: what every launcher promises, and what they share.

A launcher does no more than that; what is asked of a running server is in `ServerControl`.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple
from typing import Protocol

from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure
from optimizer.machine.slots import Slot
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.server_options import option_flags

START_SECONDS = 60.0
STOP_SECONDS = 8.0
"""A server that is told to stop gives its models less than half of this, see `arguments`."""

_EXIT_TIMEOUT_SECONDS = 3
_PORT_ATTEMPTS = 3
_PORT_IN_USE = "in use"
"""What Triton's log says of a port that another process holds."""

_SAID_WITHOUT_A_GPU = "CudaDriverHelper has not been initialized"


class PortInUse(ServerFailure):
    """The server could not listen, since another process holds one of its ports."""


PickPorts = Callable[[int], Sequence[int]]


class RunningServer(Protocol):
    """A server that was started, or that was found running."""

    @property
    def control(self) -> ServerControl:
        """The client that controls it; `stop` closes it."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""

    def exit_reason(self) -> str | None:
        """Why it is no longer running, None while it is."""

    def log_since_start(self) -> str:
        """What it has written to its log; empty where that is unseen."""

    def memory_bytes(self) -> int | None:
        """Resident memory of the server without its models' own processes; None where unseen."""

    def memory_with_models_bytes(self) -> int | None:
        """Memory of the server and its models; what processes share is divided among them.

        None where unseen.
        """

    def model_processes(self) -> Mapping[int, str] | None:
        """Return the status of every Python model's process by its id; None where unseen."""

    def cpu_seconds(self) -> float | None:
        """Process-CPU time spent so far by the server and its models; None where unseen."""

    def stop(self) -> None:
        """Stop it and wait until nothing of it is left; no error when it has ended already.

        A server that somebody else has started loses the models that were loaded through `control`,
        and runs on.
        """


class ServerLauncher(Protocol):
    """Starts servers over one model repository, in explicit model-control mode."""

    def start(self, options: ServerOptions, slot: Slot) -> RunningServer:
        """Start a server and return when it is ready.

        Raises:
            ServerFailure: when it does not come up; the message holds the end of its log.
        """


def free_ports(count: int) -> list[int]:
    """Ports on 127.0.0.1 that were free a moment ago; the caller must allow for a race."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def on_free_ports(
    start: Callable[[Endpoint], RunningServer], pick_ports: PickPorts
) -> RunningServer:
    """Start a server on 127.0.0.1, on other ports when one of those picked is taken meanwhile."""
    for attempt in range(1, _PORT_ATTEMPTS + 1):
        try:
            return start(Endpoint(*(f"127.0.0.1:{port}" for port in pick_ports(3))))
        except PortInUse:
            if attempt == _PORT_ATTEMPTS:
                raise
    raise AssertionError("unreachable: the last attempt returns or raises")


def arguments(
    options: ServerOptions, slot: Slot, endpoint: Endpoint, repository: str, *own: str
) -> list[str]:
    """The command line of tritonserver, less the program.

    Args:
        repository: as the server sees it.
        own: arguments that one launcher adds, such as where backends are.
    """
    listening = [
        f"--{what}-{part}={value}"
        for what, address in zip(("grpc", "http", "metrics"), astuple(endpoint), strict=True)
        for part, value in zip(("address", "port"), address.rsplit(":", 1), strict=True)
    ]
    return [
        f"--model-repository={repository}",
        *own,
        "--model-control-mode=explicit",
        # Auto-complete would switch batching on where a trial has it off.
        "--disable-auto-complete-config",
        *listening,
        *(["--allow-gpu-metrics=false"] if not slot.gpu_uuids else []),
        f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
        *option_flags(options),
    ]


def wait_ready(server: RunningServer, listens: Callable[[], bool]) -> None:
    """Wait until a server answers; where it does not come up, stop it.

    Args:
        listens: whether it holds all of its ports. It answers on the first before it tries the
            last, and ends when that is taken; and whoever has taken it may be a server that answers
            in this one's place.

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


def last_errors(log: str, lines: int = 3) -> str:
    """The last error lines of a Triton log, in one line; its last line where it has none."""
    found = re.findall(r"^E\d{4} \S+ \d+ \S+\] (.*)$", log, re.MULTILINE)
    wrong = [text for text in found if _SAID_WITHOUT_A_GPU not in text]
    if not wrong:
        rest = log.strip().splitlines()
        return f"its last words: {rest[-1].strip()}" if rest else "its log is empty"
    return "its log says: " + " / ".join(text.strip().strip('"') for text in wrong[-lines:])

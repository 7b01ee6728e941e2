"""A server that runs already: it is awaited, used, and left running."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace

from optimizer.configuration.hosting import RemoteHost
from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure
from optimizer.machine.slots import Slot
from optimizer.triton.control import Endpoint
from optimizer.triton.launcher import START_SECONDS, RunningServer

_START_IT = "start it with --model-control-mode=explicit --disable-auto-complete-config"
_UNLOAD_SECONDS = 10.0
_TRIES = 3
"""A busy server may miss one reply."""


class RemoteLauncher:
    """Connects to the server of a `RemoteHost`, whose options cannot be changed.

    Args:
        start_seconds: how long to wait for the server.
    """

    def __init__(self, host: RemoteHost, start_seconds: float = START_SECONDS) -> None:
        self._endpoint = Endpoint(host.grpc, host.http, host.metrics)
        self._start_seconds = start_seconds

    def start(
        self, options: ServerOptions, slot: Slot, *, completes: bool = False
    ) -> RunningServer:
        """Wait until the server answers; whether it completes configurations is as it was started.

        Raises:
            ServerFailure: it does not answer, has the wrong mode, or would have to be restarted.
        """
        # Whether clients may use shared memory is the owner's to decide.
        if replace(options, client_shared_memory=False) != ServerOptions():
            raise ServerFailure(
                f"the server at {self._endpoint.grpc} runs already and cannot be given {options}: "
                "leave server options out of the space, or let the optimizer start the server",
                transient=False,
            )
        server = _RemoteServer(self._endpoint)
        try:
            server.wait(self._start_seconds)
        except BaseException:
            server.stop()
            raise
        return server


class _RemoteServer(RunningServer):
    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__(endpoint)
        self._stopped = False

    def wait(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.control.alive():
            if time.monotonic() > end:
                raise ServerFailure(
                    f"no server answers at {self.endpoint.grpc}: {_START_IT}"
                    + self.control.last_error_text
                )
            time.sleep(0.1)
        if not self.control.in_explicit_mode():
            raise ServerFailure(
                f"the server at {self.endpoint.grpc} is not in explicit model-control mode:"
                f" {_START_IT}",
                transient=False,
            )

    def exit_reason(self) -> str | None:
        if any(self.control.alive() for _ in range(_TRIES)):
            return None
        return f"the server at {self.endpoint.grpc} does not answer" + self.control.last_error_text

    def stop(self) -> None:
        """Unload what was loaded here; a server that is gone needs no unloading."""
        if self._stopped:
            return
        self._stopped = True
        with suppress(ServerFailure):
            self.control.unload_all(_UNLOAD_SECONDS)
        self.control.close()

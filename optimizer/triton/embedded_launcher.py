"""The embedded server as a local process, which ends with the optimizer."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from optimizer.configuration.serving_config import ServerOptions
from optimizer.errors import ServerFailure, StorageError
from optimizer.files.credentials import without_secrets
from optimizer.files.log_file import open_log
from optimizer.machine import child_shim
from optimizer.machine.slots import Slot
from optimizer.triton import processes
from optimizer.triton.backend_folders import remove_backend_folders
from optimizer.triton.control import Endpoint
from optimizer.triton.embedded import SERVER_VERSION, EmbeddedRuntime
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
from optimizer.triton.shared_memory import (
    region_prefix,
    remove_regions,
    remove_regions_of_the_dead,
)

_KILL_SECONDS = 2.0
_UNLOAD_SECONDS = 3.0


class EmbeddedLauncher:
    """Starts the embedded tritonserver, on 127.0.0.1 only.

    The server ends with this process, even if this is killed (see `optimizer.machine.child_shim`).
    `start` must be called on the main thread, since the kernel takes the end of the starting thread
    for that of the parent.

    Args:
        backends: directory that `EmbeddedRuntime.lay_out` created.
        repository: served in explicit mode; created when needed.
        log: file that the server's log is appended to.
        pick_ports: returns three ports to try; called again when one is in use.
    """

    def __init__(
        self,
        runtime: EmbeddedRuntime,
        backends: Path,
        repository: Path,
        log: Path,
        pick_ports: PickPorts = free_ports,
    ) -> None:
        self._runtime = runtime
        self._backends = backends.absolute()
        self._repository = repository.absolute()
        self._log = log
        self._pick_ports = pick_ports
        self._started = 0

    def start(
        self, options: ServerOptions, slot: Slot, *, completes: bool = False
    ) -> RunningServer:
        """Start a server, on other ports when one of those picked is in use."""
        remove_regions_of_the_dead()
        remove_backend_folders()
        start = partial(self._start, options, slot, completes=completes)
        return on_free_ports(start, self._pick_ports)

    def _start(
        self, options: ServerOptions, slot: Slot, endpoint: Endpoint, *, completes: bool
    ) -> RunningServer:
        self._started += 1
        region = region_prefix(self._started)
        # Triton starts the processes of Python models by a line of shell in which these two paths
        # are not quoted: relative to where they meet, nothing that a folder is called can do harm.
        folder = Path(os.path.commonpath([self._repository, self._backends]))
        command = self._command(options, slot, endpoint, region, folder, completes)
        try:
            self._repository.mkdir(parents=True, exist_ok=True)
            with open_log(self._log) as log:
                start_of_log = log.tell()
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    # Models may be code of others.
                    env=without_secrets(os.environ)
                    | self._runtime.environment_with(slot.gpu_uuids),
                    start_new_session=True,  # Ctrl-C is the optimizer's to handle
                )
        except OSError as error:
            raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error
        server = _EmbeddedServer(process, endpoint, self._log, start_of_log, region)
        wait_ready(server, server.listens)
        return server

    def _command(
        self,
        options: ServerOptions,
        slot: Slot,
        endpoint: Endpoint,
        region: str,
        folder: Path,
        completes: bool,
    ) -> list[str]:
        return [
            *(sys.executable, "-I", "-S", str(child_shim.__file__)),
            *(str(os.getpid()), ",".join(map(str, slot.cores)), "--"),
            str(self._runtime.binary),
            *arguments(
                options,
                slot,
                endpoint,
                str(self._repository.relative_to(folder)),
                f"--backend-directory={self._backends.relative_to(folder)}",
                f"--backend-config=python,shm-region-prefix-name={region}",
                self._runtime.cache_flag,
                # It listens on this machine alone.
                *shared_memory_flags(SERVER_VERSION),
                completes=completes,
            ),
        ]


class _EmbeddedServer(RunningServer):
    def __init__(
        self,
        process: subprocess.Popen[bytes],
        endpoint: Endpoint,
        log: Path,
        start_of_log: int,
        region: str,
    ) -> None:
        super().__init__(endpoint, process.pid)
        self._process = process
        self._log = log
        self._start_of_log = start_of_log
        self._region = region

    def listens(self) -> bool:
        """Return whether the server listens on all of its ports."""
        return self.endpoint.ports <= processes.listening_below(self._process.pid)

    def exit_reason(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        end = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the server ended with {end}; {last_errors(self.log_since_start())}"

    def log_since_start(self) -> str:
        return read_log(self._log, self._start_of_log)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._unload()
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        # A killed server leaves the processes of its Python models in its session.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._wait_for_group()
        self.control.close()
        remove_regions(self._region)
        remove_backend_folders()

    def _unload(self) -> None:
        """Unload the models: a server that ends looks only once a second whether they are gone."""
        with contextlib.suppress(ServerFailure):
            if self.control.alive():
                self.control.unload_all(_UNLOAD_SECONDS)

    def _wait_for_group(self) -> None:
        """Wait until no process of the server's session runs."""
        end = time.monotonic() + _KILL_SECONDS
        while any(map(self._in_session, psutil.pids())) and time.monotonic() < end:
            time.sleep(0.01)

    def _in_session(self, pid: int) -> bool:
        # A zombie has ended, and init will reap it.
        try:
            in_group = os.getpgid(pid) == self._process.pid
            return in_group and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

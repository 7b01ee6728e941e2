"""Starting and stopping a server. A launcher does no more than that; see `ServerControl`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Protocol, TypeVar

import psutil

from optimizer import child_shim
from optimizer.errors import ServerFailure, StorageError
from optimizer.machine.slots import Slot
from optimizer.serving_config import ServerOptions
from optimizer.triton.control import Endpoint, ServerControl
from optimizer.triton.embedded import EmbeddedRuntime
from optimizer.triton.server_options import option_flags

_START_SECONDS = 60.0
_STOP_SECONDS = 8.0
_KILL_SECONDS = 2.0
_EXIT_TIMEOUT_SECONDS = 3
_PORT_ATTEMPTS = 3

_SAID_WITHOUT_A_GPU = "CudaDriverHelper has not been initialized"

_REGION = "tco_"
"""Begins the names of the shared memory of our servers; the optimizer's process id follows."""

_Number = TypeVar("_Number", int, float)

_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux shows it; only our own are removed


class RunningServer(Protocol):
    """A server that was started."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it listens."""

    def ended(self) -> str | None:
        """Why it is no longer running, None while it is."""

    def log_since_start(self) -> str:
        """What it has written to its log."""

    def memory_bytes(self) -> int | None:
        """Resident memory of the server without its models' own processes; None where unseen."""

    def memory_with_models_bytes(self) -> int | None:
        """Memory of the server and its models; what processes share is divided among them.

        None where unseen.
        """

    def cpu_seconds(self) -> float | None:
        """Process-CPU time spent so far by the server and its models; None where unseen."""

    def stop(self) -> None:
        """Stop it and wait until nothing of it is left; no error when it has ended already."""


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


class EmbeddedLauncher:
    """Starts the embedded tritonserver, on 127.0.0.1 only.

    The server ends with this process, however this ends (see `optimizer.child_shim`); started from
    the main thread, since the kernel counts the death of the starting thread as the parent's.

    Args:
        backends: what `EmbeddedRuntime.lay_out` made.
        repository: served in explicit mode; made where it is missing.
        log: appended to.
        pick_ports: gives the three ports to try; called again when one is taken meanwhile.
    """

    def __init__(
        self,
        runtime: EmbeddedRuntime,
        backends: Path,
        repository: Path,
        log: Path,
        pick_ports: Callable[[int], Sequence[int]] = free_ports,
    ) -> None:
        self._runtime = runtime
        self._backends = backends.absolute()
        self._repository = repository.absolute()
        self._log = log
        self._pick_ports = pick_ports
        self._started = 0

    def start(self, options: ServerOptions, slot: Slot) -> RunningServer:
        """See `ServerLauncher`. Takes other ports when one of those picked is taken."""
        _remove_regions_of_the_dead()
        for attempt in range(1, _PORT_ATTEMPTS + 1):
            try:
                return self._start(options, slot, self._pick_ports(3))
            except ServerFailure as error:
                if "in use" not in str(error) or attempt == _PORT_ATTEMPTS:
                    raise
        raise AssertionError("unreachable: the last attempt returns or raises")

    def _start(self, options: ServerOptions, slot: Slot, ports: Sequence[int]) -> RunningServer:
        self._started += 1
        region = f"{_REGION}{os.getpid()}_{self._started}_"
        # Triton starts the processes of Python models by a line of shell in which these two paths
        # are not quoted: relative to where they meet, nothing that a folder is called can do harm.
        folder = Path(os.path.commonpath([self._repository, self._backends]))
        command = self._command(options, slot, ports, region, folder)
        try:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            self._repository.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                start_of_log = log.tell()
                process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **dict(self._runtime.environment)},
                    start_new_session=True,  # Ctrl-C is the optimizer's to handle
                )
        except OSError as error:
            raise StorageError(f"cannot write {error.filename}: {error.strerror}") from error
        endpoint = Endpoint(*(f"127.0.0.1:{port}" for port in ports))
        server = _EmbeddedServer(process, endpoint, self._log, start_of_log, region)
        try:
            server.wait_ready()
        except BaseException:
            server.stop()
            raise
        return server

    def _command(
        self,
        options: ServerOptions,
        slot: Slot,
        ports: Sequence[int],
        region: str,
        folder: Path,
    ) -> list[str]:
        grpc, http, metrics = ports
        return [
            *(sys.executable, "-I", "-S", str(child_shim.__file__)),
            *(str(os.getpid()), ",".join(map(str, slot.cores)), "--"),
            str(self._runtime.binary),
            f"--model-repository={self._repository.relative_to(folder)}",
            f"--backend-directory={self._backends.relative_to(folder)}",
            "--model-control-mode=explicit",
            # Auto-complete would switch batching on where a trial has it off.
            "--disable-auto-complete-config",
            *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
            *("--http-address=127.0.0.1", f"--http-port={http}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
            "--allow-gpu-metrics=false",
            f"--exit-timeout-secs={_EXIT_TIMEOUT_SECONDS}",
            f"--backend-config=python,shm-region-prefix-name={region}",
            *option_flags(options),
        ]


class _EmbeddedServer:
    def __init__(
        self,
        process: subprocess.Popen[bytes],
        endpoint: Endpoint,
        log: Path,
        start_of_log: int,
        region: str,
    ) -> None:
        self._process = process
        self._endpoint = endpoint
        self._log = log
        self._start_of_log = start_of_log
        self._region = region

    @property
    def endpoint(self) -> Endpoint:
        return self._endpoint

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> None:
        end = time.monotonic() + _START_SECONDS
        with ServerControl(self._endpoint) as control:
            while not (control.ready() and self._listens()):
                if (reason := self.ended()) is not None:
                    raise ServerFailure(reason)
                if time.monotonic() > end:
                    raise ServerFailure(f"the server was not ready within {_START_SECONDS:g} s")
                time.sleep(0.02)

    def _listens(self) -> bool:
        """Whether it holds all of its ports.

        It answers on the first before it tries the last, and ends when that is taken; and whoever
        has taken it may be a server that answers in this one's place.
        """
        wanted = {int(address.rpartition(":")[2]) for address in astuple(self._endpoint)}
        try:
            sockets = psutil.Process(self._process.pid).net_connections("tcp")
        except psutil.Error:
            return False
        return wanted <= {each.laddr.port for each in sockets if each.status == psutil.CONN_LISTEN}

    def ended(self) -> str | None:
        code = self._process.poll()
        if code is None:
            return None
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"the server ended with {how}; {last_errors(self.log_since_start())}"

    def log_since_start(self) -> str:
        with self._log.open("rb") as log:
            log.seek(self._start_of_log)
            return log.read().decode(errors="replace")

    def memory_bytes(self) -> int | None:
        try:
            return int(psutil.Process(self._process.pid).memory_info().rss)
        except psutil.Error:
            return None

    def memory_with_models_bytes(self) -> int | None:
        return self._sum(lambda process: int(process.memory_full_info().pss))

    def cpu_seconds(self) -> float | None:
        return self._sum(_cpu_seconds)

    def _sum(self, of: Callable[[psutil.Process], _Number]) -> _Number | None:
        """Of the server and its models' own processes, less those that end meanwhile."""
        total = None
        with contextlib.suppress(psutil.Error):
            server = psutil.Process(self._process.pid)
            total = of(server)
            for model in server.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += of(model)
        return total

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_SECONDS)
        # The processes of Python models are in the server's session; a killed server leaves them.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._wait_for_group()
        for leftover in _SHARED_MEMORY.glob(f"{self._region}*"):
            leftover.unlink(missing_ok=True)

    def _wait_for_group(self) -> None:
        """Wait until nothing in the server's session runs any more."""
        end = time.monotonic() + _KILL_SECONDS
        while any(map(self._runs_here, psutil.pids())) and time.monotonic() < end:
            time.sleep(0.01)

    def _runs_here(self, pid: int) -> bool:
        # One that has ended and that init has not taken note of yet does not count.
        try:
            here = os.getpgid(pid) == self._process.pid
            return here and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False


def _remove_regions_of_the_dead() -> None:
    """Give back the memory of servers that ended in haste when their optimizer was killed."""
    for region in _SHARED_MEMORY.glob(f"{_REGION}*_*_*"):
        owner = region.name.removeprefix(_REGION).partition("_")[0]
        if owner.isdecimal() and not psutil.pid_exists(int(owner)):
            region.unlink(missing_ok=True)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    # Those of children that have ended count on: a model's process goes when it is unloaded.
    ended = times.children_user + times.children_system
    return float(times.user + times.system + ended)


def last_errors(log: str, lines: int = 3) -> str:
    """The last error lines of a Triton log, in one line; its last line where it has none."""
    found = re.findall(r"^E\d{4} \S+ \d+ \S+\] (.*)$", log, re.MULTILINE)
    wrong = [text for text in found if _SAID_WITHOUT_A_GPU not in text]
    if not wrong:
        rest = log.strip().splitlines()
        return f"its last words: {rest[-1].strip()}" if rest else "its log is empty"
    return "its log says: " + " / ".join(text.strip().strip('"') for text in wrong[-lines:])

"""The parent's side of the load client: one process that outlives levels, never its parent."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from threading import Timer
from types import TracebackType

import numpy as np

from optimizer.errors import LoadTestFailure
from optimizer.load.exchange import Order, Replies
from optimizer.load.levels import load_level
from optimizer.load.plan import LevelPlan, PreparedStream
from optimizer.load.schedule import order_for
from optimizer.measurement import LoadLevel

_MARGIN_SECONDS = 10.0
"""Time beyond a level's own for the process to start and for its report to arrive."""


class _ClientProcess:
    """The running process and the pipe to it."""

    def __init__(self, cores: Sequence[int] | None) -> None:
        self.hung = False
        self.connection, theirs = Pipe()
        # In memory: a full disk must not stop the client. Closed in end().
        self.stderr = os.fdopen(os.memfd_create("load client"), "w+b")
        command = [sys.executable, "-m", "optimizer.load.client_process", str(theirs.fileno())]
        with theirs:
            self.popen = subprocess.Popen(
                [*command, str(os.getpid()), ",".join(map(str, cores or ()))],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self.stderr,
                # Ctrl-C and the terminal's hang-up are the parent's to handle.
                start_new_session=True,
            )

    def ask(self, order: Order, bound_seconds: float) -> Replies:
        """Have one level sent. Raises LoadTestFailure when no replies come back in time."""
        # A watchdog, because sending a large order to a hung process would block as well.
        watchdog = Timer(bound_seconds, self._give_up)
        watchdog.start()
        try:
            self.connection.send(order)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            raise LoadTestFailure(self._obituary(bound_seconds)) from error
        finally:
            watchdog.cancel()
        if isinstance(answer, Replies):
            return answer
        raise LoadTestFailure(f"the load client failed:\n{answer}")

    def _give_up(self) -> None:
        self.hung = True
        self.popen.kill()

    def _obituary(self, bound_seconds: float) -> str:
        if self.hung:
            return f"the load client hung: no report after {bound_seconds:.1f} s"
        status = self.popen.wait()
        self.stderr.seek(0)
        said = self.stderr.read().decode(errors="replace").strip()
        return f"the load client ended with status {status}" + (f": {said}" if said else "")

    def end(self) -> None:
        """Kill the process and reap it."""
        self.popen.kill()
        self.popen.wait()
        self.connection.close()
        self.stderr.close()


class LoadClient:
    """Sends load levels from a process of its own.

    The process is started again when it is found dead. It ends with the thread that started it
    (a property of PR_SET_PDEATHSIG), so start it from one that lives as long.
    """

    def __init__(self, cores: Sequence[int] | None = None) -> None:
        """Keep the process to these CPU cores; None leaves it where the parent may run."""
        self._cores = cores
        self._process: _ClientProcess | None = None

    def __enter__(self) -> LoadClient:
        """Start the process."""
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the process."""
        self.close()

    @property
    def pid(self) -> int | None:
        """Process id of the client, None while there is none."""
        return self._process.popen.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process unless it runs; its imports go on in the background."""
        if self._process is not None and self._process.popen.poll() is not None:
            self.close()
        if self._process is None:
            self._process = _ClientProcess(self._cores)

    def close(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.end()
            self._process = None

    def run_level(
        self,
        plan: LevelPlan,
        streams: Sequence[PreparedStream],
        endpoint: str,
        rng: np.random.Generator,
    ) -> LoadLevel:
        """Send one level to `endpoint` (host:port, gRPC) and measure it.

        Takes at most warm-up, measured time and timeout, and a fixed margin. Failed requests are
        counted in the level, unless the server refuses them all for a second: it is gone.

        Raises:
            LoadTestFailure: when the server is gone, the client process died or hung (it is
                started anew next time), or a stream had no request to measure.
        """
        replies = self._exchange(plan, order_for(plan, streams, endpoint, rng))
        return load_level(plan, [item.stream for item in streams], replies)

    def _exchange(self, plan: LevelPlan, order: Order) -> Replies:
        self.start()
        assert self._process is not None
        bound = plan.sending_seconds + plan.timeout_seconds + _MARGIN_SECONDS
        try:
            return self._process.ask(order, bound)
        except BaseException:
            # An interrupted exchange leaves a stale reply in the pipe: begin afresh.
            self.close()
            raise

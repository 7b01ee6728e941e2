"""Check that the processes of a served configuration run and that its models reply.

Triton reports a model as ready although its process is dead or stopped, and silently restarts a
dead one. The check therefore looks at the processes that the model was loaded into, and sends a
request.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import psutil

from optimizer.errors import LoadTestFailure, ServerFailure
from optimizer.measurement.level import LoadLevel
from optimizer.triton.session import ServedConfiguration
from optimizer.workload.streams import Tensors

_REPLY_SECONDS = 30.0
"""Longest wait for a reply while the model executes nothing."""

_DEAD_PROCESS = re.compile(r"stub process .*(not healthy|unhealthy|terminated)", re.IGNORECASE)
"""Triton's reply to a request whose Python model process died."""

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Liveness:
    """Checks between load levels that the loaded models serve.

    Args:
        requests: returns one request for every model under load, a new one where a response cache
            would answer an old one.
    """

    def __init__(
        self, served: ServedConfiguration, requests: Callable[[], Mapping[str, Tensors]]
    ) -> None:
        self._served = served
        self._requests = requests

    def check(self) -> None:
        """Check processes and replies.

        Raises:
            LoadTestFailure: the server has ended.
            ServerFailure: a model's process has died or is stopped, or a model is not ready or does
                not reply.
        """
        self.check_processes()
        self.check_replies()

    def check_processes(self, level: LoadLevel | None = None) -> None:
        """Check the server and its models' processes; raises what `check` raises.

        Args:
            level: the last load level, whose errors may show that a process died.
        """
        if (reason := self._served.server.exit_reason()) is not None:
            raise LoadTestFailure(reason)
        self._check_processes()
        for stream in level.streams if level is not None else ():
            _refuse_death(stream.first_error)

    def check_replies(self) -> None:
        """Send every model one request. Raises ServerFailure where one does not reply."""
        for model, tensors in self._requests().items():
            control = self._served.control
            _refuse_death(control.error_of_one_request(model, tensors, _REPLY_SECONDS))

    def _check_processes(self) -> None:
        now = self._served.server.model_processes()
        if now is None:
            return
        for pid in self._served.processes:
            status = now.get(pid, psutil.STATUS_DEAD)
            if status in _ENDED:
                raise ServerFailure(f"process {pid}, in which a model runs, has died")
            if status in _STOPPED:
                raise ServerFailure(f"process {pid}, in which a model runs, is stopped")


def _refuse_death(error: str | None) -> None:
    """Raise ServerFailure for an error of a dead process; other errors are the model's own."""
    if error is not None and _DEAD_PROCESS.search(error):
        raise ServerFailure(f"a model's process has died: {error}")

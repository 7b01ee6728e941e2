"""Whether what serves a configuration is alive: its processes, its readiness, and an answer.

Triton goes on calling a model ready when the model's process is dead or stopped, and starts a dead
one anew in silence. So the processes that the model was loaded into are looked at, and the model is
sent a request.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import psutil

from optimizer.errors import LoadTestFailure, ServerFailure
from optimizer.measurement.level import LoadLevel
from optimizer.triton.session import ServedConfiguration
from optimizer.workload.streams import Tensors

_ANSWER_SECONDS = 30.0
"""Longest wait for an answer while the model executes nothing."""

_DEAD_PROCESS = re.compile(r"stub process .*(not healthy|unhealthy|terminated)", re.IGNORECASE)
"""Triton's reply to a request that was with a Python model's process when that died."""

_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_ENDED = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)


class Liveness:
    """Checks, between load levels, that the models that were loaded are the ones that answer.

    Args:
        requests: one request for every model that the load is sent to.
    """

    def __init__(self, served: ServedConfiguration, requests: Mapping[str, Tensors]) -> None:
        self._served = served
        self._requests = requests

    def check(self) -> None:
        """Check everything.

        Raises:
            LoadTestFailure: the server has ended.
            ServerFailure: a model's process has died or is stopped, or a model is not ready or does
                not answer.
        """
        self.check_processes()
        self.check_answers()

    def check_processes(self, level: LoadLevel | None = None) -> None:
        """Check the server and its models' processes.

        Args:
            level: that has just been run, whose errors may tell of a death.

        Raises:
            As `check`.
        """
        if (reason := self._served.server.exit_reason()) is not None:
            raise LoadTestFailure(reason)
        self._check_processes()
        for stream in level.streams if level is not None else ():
            _refuse_death(stream.first_error)

    def check_answers(self) -> None:
        """Send every model one request. Raises ServerFailure where one does not answer."""
        for model, tensors in self._requests.items():
            control = self._served.control
            _refuse_death(control.error_of_one_request(model, tensors, _ANSWER_SECONDS))

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
    """Raise ServerFailure for an error that tells of a dead process; others are the model's own."""
    if error is not None and _DEAD_PROCESS.search(error):
        raise ServerFailure(f"a model's process has died: {error}")

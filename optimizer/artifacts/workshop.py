"""Builds artefacts in one child process, so that torch never lives in this one.

A build that crashes, is killed for memory or hangs costs that artefact only: the child is started
again for the next. What libraries print goes to a log file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from optimizer.artifacts.jobs import Job, Reply
from optimizer.artifacts.production import build_artifact, prepare_model
from optimizer.artifacts.products import ModelArtifact, PreparedModel
from optimizer.errors import BuildFailure, storage_errors
from optimizer.model_spec import ModelSpec
from optimizer.serving_config import ArtifactSpec


class Workshop:
    """Builds artefacts, one at a time; for one thread. A context manager.

    Args:
        cache_root: directory of the artefact cache.
        log: file that the child's output and tracebacks are appended to.
        threads: that torch calculates with.
        timeout_s: longest time of one call.
    """

    def __init__(
        self, cache_root: Path, log: Path, threads: int, timeout_s: float = 3600.0
    ) -> None:
        self._cache_root = cache_root
        self._log = log
        self._threads = threads
        self._timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Job, Reply] | None = None

    def prepare_model(self, model: ModelSpec) -> PreparedModel:
        """Export `model` and calculate its reference outputs; nothing is done twice.

        Raises:
            BuildFailure: when it cannot be done.
            UsageError: when the model, its outputs or its data sets are not as `model` says.
            RequirementError: when a library is missing.
            StorageError: when the cache or the log cannot be written.
        """
        prepared = self._run(Job(model.name, partial(prepare_model, model)))
        assert isinstance(prepared, PreparedModel)
        return prepared

    def build(self, spec: ArtifactSpec, model: ModelSpec) -> ModelArtifact:
        """Make the files of `spec`, an artefact of `model`; nothing is done twice.

        Raises:
            As `prepare_model`.
        """
        artifact = self._run(Job(spec.label, partial(build_artifact, spec, model)))
        assert isinstance(artifact, ModelArtifact)
        return artifact

    def close(self) -> None:
        """End the child, whatever it is doing; may be called again."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, job: Job) -> object:
        connection = self._connected()
        try:
            connection.send(job)
            reply = connection.recv() if connection.poll(self._timeout_s) else None
        except (EOFError, ConnectionError) as error:
            raise BuildFailure(f"{job.label}: {self._last_words()}; see {self._log}") from error
        except BaseException:
            # An unread reply would be taken for the next job's.
            self.close()
            raise
        if reply is None:
            self.close()
            late = f"not built after {self._timeout_s:g} s"
            raise BuildFailure(f"{job.label}: {late}; see {self._log}")
        if reply.error is not None:
            kind, message = reply.error
            raise kind(message)
        return reply.value

    def _connected(self) -> Connection[Job, Reply]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        return self._connection

    def _start(self) -> None:
        ours, theirs = Pipe()
        environment = {
            # The same modules as here, wherever they were found.
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": str(self._threads),
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        module = "optimizer.artifacts.workshop_child"
        arguments = [str(theirs.fileno()), str(self._cache_root)]
        with theirs, storage_errors(self._log):
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                self._child = subprocess.Popen(
                    [sys.executable, "-P", "-m", module, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[theirs.fileno()],
                    env=os.environ | environment,
                    # Ctrl-C in the terminal is for this process, which ends the child.
                    start_new_session=True,
                )
        self._connection = ours

    def _last_words(self) -> str:
        """How the child ended, once its end of the connection is closed."""
        assert self._child is not None
        code = self._child.wait()
        self.close()
        if code < 0:
            return f"the build was killed by {signal.Signals(-code).name}"
        return f"the build ended with exit code {code}"

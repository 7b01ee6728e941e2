"""Builds artefacts in one child process, so that torch never lives in this one.

A build that crashes, is killed for memory or hangs costs that artefact only: the child is started
again for the next. What libraries print goes to a log file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

from optimizer.artifacts.bare_timing import time_bare
from optimizer.artifacts.build_context import Tell, in_silence
from optimizer.artifacts.build_jobs import (
    build_artifact,
    check_room,
    export_graph,
    prepare_model,
)
from optimizer.artifacts.build_messages import Job, JobProgress, Reply
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel
from optimizer.artifacts.cache import CacheEntry
from optimizer.artifacts.engines.build_locations import reap_builds
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, storage_errors
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors


class BuildProcess:
    """Builds artefacts, one at a time; for one thread. A context manager.

    Args:
        cache_root: directory of the artefact cache.
        log: file that the child's output and tracebacks are appended to.
        threads: that torch calculates with.
        timeout_s: longest time of one call; the time of an engine's own build comes on top.
        engines: how engines are built; None where there is no GPU to build them on.
    """

    def __init__(
        self,
        cache_root: Path,
        log: Path,
        threads: int,
        timeout_s: float = 3600.0,
        engines: EngineSettings | None = None,
    ) -> None:
        self._cache_root = cache_root
        self._log = log
        self._threads = threads
        self._timeout_s = timeout_s
        self._engines = engines
        self._busy = False
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Job, Reply | JobProgress] | None = None

    def prepare_model(
        self, model: ModelSpec, on_progress: Tell = in_silence, lengths: Sequence[int] = ()
    ) -> PreparedModel:
        """Calculate the reference outputs of `model` by the model itself; nothing is done twice.

        Args:
            on_progress: told how far it is.
            lengths: that requests are padded to beside the longest.

        Raises:
            BuildFailure: when it cannot be done.
            UsageError: when the model, its outputs or its data sets are not as `model` says.
            RequirementError: when a library is missing.
            StorageError: when the cache or the log cannot be written.
        """
        job = Job(model.name, partial(prepare_model, model, lengths=lengths))
        prepared = self._run(job, on_progress, self._timeout_s)
        assert isinstance(prepared, PreparedModel)
        return prepared

    def export_graph(self, model: ModelSpec) -> CacheEntry:
        """Export `model` to the FP32 ONNX graph that most artefacts are made from.

        Raises:
            As `prepare_model`.
        """
        job = Job(f"ONNX export of {model.name}", partial(export_graph, model))
        graph = self._run(job, in_silence, self._timeout_s)
        assert isinstance(graph, CacheEntry)
        return graph

    def require_room(
        self, specs: Sequence[ArtifactSpec], model: ModelSpec, weight_bytes: int
    ) -> None:
        """Hold what is missing of `specs`, artefacts of `model`, against the cache's disk.

        Args:
            weight_bytes: size of the model's FP32 weights.

        Raises:
            RequirementError: when there is too little room; it names the folder and both figures.
            Or as `prepare_model`.
        """
        work = partial(check_room, specs, model, weight_bytes, engines=self._engines)
        self._run(Job(f"room for {model.name}", work), in_silence, self._timeout_s)

    def build(
        self, spec: ArtifactSpec, model: ModelSpec, on_progress: Tell = in_silence
    ) -> ModelArtifact:
        """Make the files of `spec`, an artefact of `model`; nothing is done twice.

        Args:
            on_progress: told how far it is.

        Raises:
            As `prepare_model`.
        """
        timeout_s = self._timeout_s
        if spec.runtime == "tensorrt" and self._engines is not None:
            timeout_s += self._engines.timeout_seconds
        job = Job(spec.label, partial(build_artifact, spec, model, engines=self._engines))
        artifact = self._run(job, on_progress, timeout_s)
        assert isinstance(artifact, ModelArtifact)
        return artifact

    def time_bare(
        self, artifact: ModelArtifact, output: str, batches: Sequence[Tensors]
    ) -> tuple[float, ...]:
        """Run an artefact in its own runtime on this machine's CPU, without a server.

        Args:
            output: name of the tensor that is asked for.
            batches: inputs of one execution each.

        Returns:
            For each batch, ms that one execution takes.

        Raises:
            BuildFailure: when it cannot be run.
        """
        work = partial(time_bare, artifact, output, self._threads, batches)
        times = self._run(Job(artifact.spec.label, work), in_silence, self._timeout_s)
        assert isinstance(times, tuple)
        return times

    def close(self) -> None:
        """End the child, whatever it is doing; may be called again."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._busy:
            self._busy = False
            reap_builds(self._engines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _run(self, job: Job, on_progress: Tell, timeout_s: float) -> object:
        connection = self._connected()
        self._busy = True
        try:
            connection.send(job)
            reply = _reply(connection, on_progress, timeout_s)
        except (EOFError, ConnectionError) as error:
            raise BuildFailure(f"{job.label}: {self._last_words()}; see {self._log}") from error
        except BaseException:
            # An unread reply would be taken for the next job's.
            self.close()
            raise
        if reply is None:
            self.close()
            late = f"not built after {timeout_s:g} s"
            raise BuildFailure(f"{job.label}: {late}; see {self._log}")
        self._busy = False
        if reply.error is not None:
            raise reply.error
        return reply.value

    def _connected(self) -> Connection[Job, Reply | JobProgress]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        return self._connection

    def _start(self) -> None:
        reap_builds(self._engines)  # of a run that was killed, before this one's begin
        ours, theirs = Pipe()
        environment = {
            # The same modules as here, wherever they were found.
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": str(self._threads),
            # As where PyTorch is served: threads that wait leave the cores to others.
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        module = "optimizer.artifacts.build_process_child"
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


def _reply(
    connection: Connection[Job, Reply | JobProgress], on_progress: Tell, timeout_s: float
) -> Reply | None:
    """The reply to a job, None where it is not there after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while connection.poll(max(0.0, until - time.monotonic())):
        message = connection.recv()
        if isinstance(message, Reply):
            return message
        on_progress(message.text)
    return None

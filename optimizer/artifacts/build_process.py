"""Build artefacts in one child process, so that this process never loads torch.

A build that crashes, hangs or is killed for memory costs that artefact only: the child is started
again for the next one. Its output goes to a log file.
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
from typing import Self, TypeVar, cast

from optimizer.artifacts.bare_timing import time_bare
from optimizer.artifacts.build_context import ReportProgress, no_progress
from optimizer.artifacts.build_jobs import (
    build_artifact,
    check_room,
    export_graph,
    prepare_model,
)
from optimizer.artifacts.build_messages import Job, JobProgress, Reply
from optimizer.artifacts.build_results import ModelArtifact, PreparedModel
from optimizer.artifacts.cache import ArtifactCache, CacheEntry
from optimizer.artifacts.engines.build_locations import reap_builds
from optimizer.configuration.hosting import EngineSettings
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import BuildFailure, storage_errors
from optimizer.files.log_file import open_log
from optimizer.workload.model_spec import ModelSpec
from optimizer.workload.streams import Tensors

_Value = TypeVar("_Value")


class BuildProcess:
    """Build artefacts one at a time, from one thread; a context manager.

    Args:
        cache: the artefact cache.
        log: file that the child's output and tracebacks are appended to.
        threads: CPU threads of torch.
        timeout_s: longest time of one call; an engine's own time limit is added to it.
        engines: how engines are built; None where there is no GPU to build them on.
    """

    def __init__(
        self,
        cache: ArtifactCache,
        log: Path,
        threads: int,
        timeout_s: float = 3600.0,
        engines: EngineSettings | None = None,
    ) -> None:
        self._cache = cache
        self._log = log
        self._threads = threads
        self._timeout_s = timeout_s
        self._engines = engines
        self._busy = False
        self._child: subprocess.Popen[bytes] | None = None
        self._connection: Connection[Job[object] | ArtifactCache, Reply | JobProgress] | None = None

    def prepare_model(
        self,
        model: ModelSpec,
        on_progress: ReportProgress = no_progress,
        lengths: Sequence[int] = (),
    ) -> PreparedModel:
        """Compute the reference outputs of `model` by the model itself, unless they are cached.

        Args:
            on_progress: receives progress texts.
            lengths: in tokens, that requests are padded to besides the longest.

        Raises:
            BuildFailure: when they cannot be computed.
            UsageError: when the model, its outputs or its data sets differ from what `model` says.
            RequirementError: when a library is missing.
            StorageError: when the cache or the log cannot be written.
        """
        job = Job(model.name, partial(prepare_model, model, lengths=lengths))
        return self._run(job, on_progress)

    def export_graph(self, model: ModelSpec) -> CacheEntry:
        """Export `model` to FP32 ONNX; raises what `prepare_model` raises."""
        job = Job(f"ONNX export of {model.name}", partial(export_graph, model))
        return self._run(job)

    def require_room(
        self, specs: Sequence[ArtifactSpec], model: ModelSpec, weight_bytes: int
    ) -> None:
        """Check that the artefacts of `model` that are still missing fit on the cache's disk.

        Args:
            weight_bytes: size of the model's FP32 weights.

        Raises:
            RequirementError: when they do not fit; the message names the folder and both sizes.
        """
        work = partial(check_room, specs, model, weight_bytes, engines=self._engines)
        self._run(Job(f"room for {model.name}", work))

    def build(
        self, spec: ArtifactSpec, model: ModelSpec, on_progress: ReportProgress = no_progress
    ) -> ModelArtifact:
        """Build an artefact of `model` unless it is cached; raises what `prepare_model` raises.

        Args:
            on_progress: receives progress texts.
        """
        engines = self._engines if spec.runtime == "tensorrt" else None
        more_seconds = engines.timeout_seconds if engines is not None else 0.0
        job = Job(spec.label, partial(build_artifact, spec, model, engines=self._engines))
        return self._run(job, on_progress, more_seconds)

    def time_bare(
        self, artifact: ModelArtifact, outputs: Sequence[str], batches: Sequence[Tensors]
    ) -> tuple[float, ...]:
        """Time an artefact in its own runtime on this machine's CPU, without a server.

        Args:
            outputs: names of the output tensors.
            batches: inputs of one execution each.

        Returns:
            The time of one execution of each batch, in ms.

        Raises:
            BuildFailure: when it cannot be executed.
        """
        work = partial(time_bare, artifact, outputs, self._threads, batches)
        return self._run(Job(artifact.spec.label, work))

    def close(self) -> None:
        """Kill the child process; may be called again."""
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(
        self, job: Job[_Value], on_progress: ReportProgress = no_progress, more_seconds: float = 0.0
    ) -> _Value:
        connection, timeout_s = self._connected(), self._timeout_s + more_seconds
        self._busy = True
        try:
            connection.send(job)
            reply = _reply(connection, on_progress, timeout_s)
        except (EOFError, ConnectionError) as error:
            raise BuildFailure(f"{job.label}: {self._exit_text()}; see {self._log}") from error
        except BaseException:
            # An unread reply would be taken for the next job's.
            self.close()
            raise
        if reply is None:
            self.close()
            raise BuildFailure(f"{job.label}: not built after {timeout_s:g} s; see {self._log}")
        self._busy = False
        if reply.error is not None:
            raise reply.error
        return cast(_Value, reply.value)

    def _connected(self) -> Connection[Job[object] | ArtifactCache, Reply | JobProgress]:
        if self._child is not None and self._child.poll() is not None:
            self.close()
        if self._connection is None:
            self._start()
        assert self._connection is not None
        return self._connection

    def _start(self) -> None:
        reap_builds(self._engines)  # of a run that was killed
        own_end, child_end = Pipe()
        environment = {
            # The modules of this process, from wherever it imports them.
            "PYTHONPATH": os.pathsep.join(sys.path),
            "OMP_NUM_THREADS": str(self._threads),
            # As in Triton: threads that wait leave the cores to others.
            "OMP_WAIT_POLICY": "PASSIVE",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }
        module = "optimizer.artifacts.build_process_child"
        with child_end, storage_errors(self._log), open_log(self._log) as log:
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", module, str(child_end.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[child_end.fileno()],
                env=os.environ | environment,
                # Ctrl-C in the terminal reaches this process alone, which ends the child.
                start_new_session=True,
            )
        # Not among the arguments: the address of a shared cache may have a password.
        own_end.send(self._cache)
        self._connection = own_end

    def _exit_text(self) -> str:
        """Return how the child ended, once its end of the connection is closed."""
        assert self._child is not None
        code = self._child.wait()
        self.close()
        if code < 0:
            return f"the build was killed by {signal.Signals(-code).name}"
        return f"the build ended with exit code {code}"


def _reply(
    connection: Connection[Job[object] | ArtifactCache, Reply | JobProgress],
    on_progress: ReportProgress,
    timeout_s: float,
) -> Reply | None:
    """Return the reply to a job, None where it does not come within `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while connection.poll(max(0.0, deadline - time.monotonic())):
        message = connection.recv()
        if isinstance(message, Reply):
            return message
        on_progress(message.text)
    return None

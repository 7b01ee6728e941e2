"""Execution times of an artefact in its own runtime, without Triton.

The runtime is opened by the same code as in Triton's Python backend.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Sequence

from optimizer.artifacts.build_context import ReportProgress, no_progress
from optimizer.artifacts.build_results import ModelArtifact
from optimizer.artifacts.cache import ArtifactCache
from optimizer.configuration.runtimes import session_file
from optimizer.workload.streams import Tensors

_SECONDS, _MIN_REPEATS, _MAX_REPEATS = 0.1, 3, 500
"""How long a batch is repeated, and how often at least and at most."""


def time_bare(
    artifact: ModelArtifact,
    outputs: Sequence[str],
    threads: int,
    batches: Sequence[Tensors],
    cache: ArtifactCache,
    report_progress: ReportProgress = no_progress,
) -> tuple[float, ...]:
    """Return the shortest time of one execution of each batch, in ms; a job of `BuildProcess`.

    The shortest, because other load on the machine can only add to an execution.

    Args:
        outputs: names of the output tensors.
        threads: intra-op threads of the runtime.
    """
    spec = artifact.spec
    run = runpy.run_path(str(session_file(spec.runtime)))["open_session"](
        directory=str(artifact.path),
        outputs=list(outputs),
        precision=spec.precision,
        threads=threads,
        gpu=None,
    )
    return tuple(_shortest_ms(run, batch) for batch in batches)


def _shortest_ms(run: Callable[[Tensors], object], batch: Tensors) -> float:
    run(batch)  # allocates, and compiles with some runtimes
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _MIN_REPEATS or (len(times) < _MAX_REPEATS and time.perf_counter() < end):
        start = time.perf_counter_ns()
        run(batch)
        times.append((time.perf_counter_ns() - start) / 1e6)
    return min(times)

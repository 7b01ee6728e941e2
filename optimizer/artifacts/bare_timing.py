"""How long an artefact takes in its own runtime, without Triton around it.

The runtime is opened by the same code that opens it in Triton's Python backend.
"""

from __future__ import annotations

import runpy
import time
from collections.abc import Callable, Sequence
from typing import Any

from numpy.typing import NDArray

from optimizer.artifacts.build_context import Tell, in_silence
from optimizer.artifacts.build_results import ModelArtifact
from optimizer.artifacts.cache import ArtifactCache
from optimizer.runtimes import session_file
from optimizer.workload.streams import Tensors

_SECONDS, _FEWEST, _MOST = 0.1, 3, 500
"""How long a batch is repeated, and how often at least and at most."""


def time_bare(
    artifact: ModelArtifact,
    output: str,
    threads: int,
    batches: Sequence[Tensors],
    cache: ArtifactCache,
    tell: Tell = in_silence,
) -> tuple[float, ...]:
    """Return the shortest time of one execution of each batch, in ms; a job of the workshop.

    What else the machine does can only add to it, and adds the most to a loop that never waits.

    Args:
        output: name of the tensor that is asked for.
        threads: that the runtime calculates with.
    """
    spec = artifact.spec
    run = runpy.run_path(str(session_file(spec.runtime)))["open_session"](
        directory=str(artifact.path),
        output=output,
        precision=spec.precision,
        threads=threads,
        gpu=None,
    )
    return tuple(_shortest_ms(run, batch) for batch in batches)


def _shortest_ms(run: Callable[[Tensors], NDArray[Any]], batch: Tensors) -> float:
    run(batch)  # allocates, and compiles with some runtimes
    times: list[float] = []
    end = time.perf_counter() + _SECONDS
    while len(times) < _FEWEST or (len(times) < _MOST and time.perf_counter() < end):
        begun = time.perf_counter_ns()
        run(batch)
        times.append((time.perf_counter_ns() - begun) / 1e6)
    return min(times)

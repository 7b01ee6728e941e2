"""What part of a model's compute time is that of Triton's Python backend, which hosts it. Pure.

The server counts as "compute infer" everything that happens in the Python model: its own work on
requests, and the model in its runtime. Both were timed when the artefact was prepared, with the
same threads and nothing beside them; under load both are taken to grow alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.measurement.level import ServerSplit


@dataclass(frozen=True)
class HostTiming:
    """One execution of a batch, timed at prepare.

    Attributes:
        served_ms: "compute infer" of the Python backend.
        bare_ms: of the model in its runtime, in a process without Triton.
    """

    batch_size: int
    served_ms: float
    bare_ms: float


def model_ms(split: ServerSplit, timings: Sequence[HostTiming]) -> float | None:
    """Return how much of a request's mean compute time the model takes.

    Returns:
        None where the artefact was not timed; the rest of the compute time is the host's.
    """
    known = sorted(timings, key=lambda timing: timing.batch_size)
    compute = np.array([point.inferences * point.compute_ms for point in split.batches])
    if not known or not compute.sum():
        return None
    sizes = [timing.batch_size for timing in known]
    executed = [point.batch_size for point in split.batches]
    served = np.interp(executed, sizes, [timing.served_ms for timing in known])
    bare = np.interp(executed, sizes, [timing.bare_ms for timing in known])
    shares = np.clip(bare / served, 0.0, 1.0)
    return float(split.compute_infer_ms * (compute * shares).sum() / compute.sum())

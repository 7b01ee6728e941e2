"""Division of compute time between a model and Triton's Python backend, which hosts it.

The server counts as "compute infer" both the Python backend's own work on requests and the model in
its runtime. Both were timed when the artefact was prepared, with the same threads on an idle
machine; under load both are assumed to grow alike.
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
        bare_ms: time of the model in its runtime, in a process without Triton.
    """

    batch_size: int
    served_ms: float
    bare_ms: float


def model_ms(split: ServerSplit, timings: Sequence[HostTiming]) -> float | None:
    """Return the model's part of a request's mean compute time; the rest is the Python backend's.

    Returns:
        None where the artefact was not timed.
    """
    ordered = sorted(timings, key=lambda timing: timing.batch_size)
    compute = np.array([point.inferences * point.compute_ms for point in split.batches])
    if not ordered or not compute.sum():
        return None
    sizes = [timing.batch_size for timing in ordered]
    executed = [point.batch_size for point in split.batches]
    served = np.interp(executed, sizes, [timing.served_ms for timing in ordered])
    bare = np.interp(executed, sizes, [timing.bare_ms for timing in ordered])
    shares = np.clip(bare / served, 0.0, 1.0)
    return float(split.compute_infer_ms * (compute * shares).sum() / compute.sum())

"""Measure the ranges of activations on the calibration rows, within the available memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray

from optimizer.artifacts.graphs.arithmetic import Shapes, observing_session, peak_bytes
from optimizer.errors import BuildFailure
from optimizer.workload.streams import Tensors, stack

Range = tuple[float, float]
"""The smallest and the largest value of a tensor."""

Batch = Mapping[str, NDArray[Any]]
"""Values of tensors for several rows, by name."""

_BATCH_BYTES = 256 * 2**20
"""Size of the activations of one batch. It is fixed, so that ranges depend on the model alone."""

_COPIES_OF_WEIGHTS = 4
"""The graph that is quantised, the parsed file, and the session's weights in two layouts."""

_BINS = 4096
_GIB = 2**30


def calibrated_ranges(
    path: Path, tensors: Set[str], rows: list[Tensors], shapes: Shapes, percentile: float
) -> dict[str, Range]:
    """Return the range of each tensor over all rows; at most two batches are in memory.

    Args:
        path: an ONNX file, its external data beside it.
        tensors: activations, by name.
        rows: requests of equal shape.
        shapes: shapes of the graph's tensors for one row.
        percentile: share of a tensor's values within its range, in %; 100 covers all of them.

    Raises:
        BuildFailure: when one row does not fit in memory, or a tensor holds NaN or infinity.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)
    row_bytes = peak_bytes(model.graph.node, shapes, tensors)
    weights = sum(file.stat().st_size for file in path.parent.iterdir())
    batch = min(max(_BATCH_BYTES // max(row_bytes, 1), 1), len(rows))
    _require_memory(weights, row_bytes, batch, shapes, rows[0])
    inner_names = sorted(tensors - rows[0].keys())
    session = observing_session(model, path, inner_names) if inner_names else None
    del model

    def values(start: int) -> Batch:
        request = stack(rows[start : start + batch])
        inner = session.run(inner_names, request) if session is not None else []
        return request | dict(zip(inner_names, inner, strict=True))

    starts = range(0, len(rows), batch)
    first = values(0)
    ranges = _extremes(chain([first], map(values, starts[1:])), tensors)
    if percentile < 100:
        ranges = _percentiles(chain([first], map(values, starts[1:])), ranges, percentile)
    return ranges


def _require_memory(weights: int, row_bytes: int, batch: int, shapes: Shapes, row: Tensors) -> None:
    needed = _COPIES_OF_WEIGHTS * weights + batch * row_bytes
    available = psutil.virtual_memory().available
    if needed > available:
        sizes = ", ".join(f"{name} {list(shapes[name])}" for name in sorted(row))
        raise BuildFailure(
            f"calibration: a batch of {batch} ({sizes} each) needs about {needed / _GIB:.1f} GiB of"
            f" memory and must fit in what is available ({available / _GIB:.1f} GiB):"
            " free memory, or give the model shorter lengths"
        )


def _extremes(batches: Iterable[Batch], tensors: Set[str]) -> dict[str, Range]:
    lowest = dict.fromkeys(tensors, np.inf)
    highest = dict.fromkeys(tensors, -np.inf)
    for batch in batches:
        for name in tensors:
            # np.minimum and np.maximum propagate NaN.
            lowest[name] = float(np.minimum(lowest[name], batch[name].min()))
            highest[name] = float(np.maximum(highest[name], batch[name].max()))
    for name in sorted(tensors):
        if not np.isfinite([lowest[name], highest[name]]).all():
            raise BuildFailure(f"calibration: the tensor {name} holds NaN or infinity")
    return {name: (lowest[name], highest[name]) for name in tensors}


def _percentiles(
    batches: Iterable[Batch], ranges: Mapping[str, Range], percentile: float
) -> dict[str, Range]:
    """Return ranges without the rarest values, the same share at either end."""
    edges = {name: np.linspace(*limits, _BINS + 1) for name, limits in ranges.items()}
    counts = {name: np.zeros(_BINS) for name in ranges}
    for batch in batches:
        for name, limits in ranges.items():
            counts[name] += np.histogram(batch[name], _BINS, limits)[0]
    outside = (100 - percentile) / 200
    narrowed = {}
    for name, counted in counts.items():
        shares = np.concatenate([[0.0], np.cumsum(counted) / counted.sum()])
        low, high = np.interp([outside, 1 - outside], shares, edges[name])
        narrowed[name] = (float(low), float(high))
    return narrowed

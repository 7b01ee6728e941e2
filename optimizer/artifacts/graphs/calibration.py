"""Measure the ranges of activations on the calibration rows, within the available memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.graphs.arithmetic import (
    Shapes,
    observing_session,
    peak_bytes,
    total_bytes,
)
from optimizer.errors import BuildFailure
from optimizer.machine.cores import unused_memory_bytes
from optimizer.workload.streams import Tensors, stack

Range = tuple[float, float]
"""The smallest and the largest value of a tensor."""

Batch = Mapping[str, NDArray[Any]]
"""Values of tensors for several rows, by name."""

_BATCH_BYTES = 256 * 2**20
"""Memory for the activations of one batch, where it is available and holds one row."""

_COPIES_OF_WEIGHTS = 5
"""The graph that is quantised, the one that is observed, its file as the session parses it, and the
session's weights in two layouts."""

_COPIES_OF_VALUES = 3
"""Of the observed tensors, beside the session's own: those of the first batch, those of the current
one, and those that are multiplied by the factors of smoothing."""

_BINS = 4096
_GIB = 2**30

_log = logging.getLogger(__name__)


class Activations:
    """Values of a graph's tensors on the calibration rows, a batch at a time.

    At most two batches are in memory. Each iteration executes the graph anew.
    """

    def __init__(
        self,
        path: Path,
        tensors: Set[str],
        rows: list[Tensors],
        shapes: Shapes,
        *,
        batched: bool = True,
    ) -> None:
        """Execute the first batch.

        Args:
            path: an ONNX file, its external data beside it.
            tensors: activations, by name.
            rows: requests of equal shape.
            shapes: shapes of the graph's tensors for one row.
            batched: whether rows have a batch axis; without one, each is executed by itself.

        Raises:
            BuildFailure: when one row does not fit in the available memory.
        """
        import onnx

        model = onnx.load(path, load_external_data=False)
        weights = _COPIES_OF_WEIGHTS * sum(file.stat().st_size for file in path.parent.iterdir())
        row = peak_bytes(model.graph.node, shapes, tensors)
        row += _COPIES_OF_VALUES * total_bytes(shapes, tensors)
        batch = _batch_size(weights, row, shapes, rows[0], len(rows) if batched else 1)
        self.tensors = tensors
        self._inner = sorted(tensors - rows[0].keys())
        self._session = observing_session(model, path, self._inner) if self._inner else None
        self._batches = [rows[start : start + batch] for start in range(0, len(rows), batch)]
        self._first = self._values(self._batches[0])

    def __iter__(self) -> Iterator[Batch]:
        """Yield the values of each batch."""
        yield self._first
        yield from map(self._values, self._batches[1:])

    def _values(self, rows: list[Tensors]) -> Batch:
        request = stack(rows)
        inner = self._session.run(self._inner, request) if self._session is not None else []
        return request | dict(zip(self._inner, inner, strict=True))


def channel_peaks(activations: Activations, tensors: Set[str]) -> dict[str, NDArray[np.float32]]:
    """Return the largest absolute value in each position of the last axis, by tensor."""
    peaks: dict[str, NDArray[np.float32]] = {}
    for batch in activations:
        for name in tensors:
            values = np.abs(batch[name])
            peak = values.reshape(-1, values.shape[-1]).max(axis=0)
            peaks[name] = np.maximum(peaks.get(name, peak), peak)
    return peaks


def calibrated_ranges(
    activations: Activations, percentile: float, factors: Mapping[str, NDArray[np.float32]]
) -> dict[str, Range]:
    """Return the range of each tensor over all rows.

    Args:
        percentile: share of a tensor's values within its range, in %; 100 covers all of them.
        factors: that tensors are multiplied by, along their last axis.

    Raises:
        BuildFailure: when a tensor contains NaN or infinity.
    """

    def scaled() -> Iterator[Batch]:
        for batch in activations:
            yield {**batch, **{name: batch[name] * by for name, by in factors.items()}}

    ranges = _extremes(scaled(), activations.tensors)
    return ranges if percentile == 100 else _percentiles(scaled(), ranges, percentile)


def _batch_size(weights: int, row_bytes: int, shapes: Shapes, row: Tensors, most: int) -> int:
    """Return how many rows are executed at once, by the memory that is available.

    Args:
        weights: bytes that do not depend on it.
        row_bytes: bytes for each row.
        most: largest number of rows.
    """
    available = unused_memory_bytes()
    left = available - weights
    batch = max(1, min(most, min(left, _BATCH_BYTES) // max(row_bytes, 1)))
    needed = weights + batch * row_bytes
    rows = f"{batch} row{'s' if batch != 1 else ''} at once"
    sizes = ", ".join(f"{name} {list(shapes[name])}" for name in sorted(row))
    text = f"calibration: {rows} ({sizes} each) needs about {needed / _GIB:.1f} GiB of memory"
    if needed > available:
        raise BuildFailure(
            f"{text} and must fit in what is available ({available / _GIB:.1f} GiB):"
            " free memory, or give the model shorter lengths"
        )
    _log.info("%s, and %.1f GiB is available", text, available / _GIB)
    return batch


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
            raise BuildFailure(f"calibration: the tensor {name} contains NaN or infinity")
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

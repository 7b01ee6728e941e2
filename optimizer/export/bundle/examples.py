"""Recorded examples: a few inputs of a model, and the outputs of the measured server.

Inputs are drawn like those of load tests, never taken from evaluation data. They have the longest
length, so all have one shape and none is padded.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.artifacts.accuracy import compare, misses
from optimizer.errors import ConfigMismatch, UsageError, storage_errors
from optimizer.files.untrusted import UNREADABLE_NPZ, read_bytes
from optimizer.workload.model_spec import AccuracyLimits
from optimizer.workload.streams import LengthDistribution, Payloads, Tensors, stack

COUNT = 16
_SEED = 11
_INPUT, _OUTPUT = "input:", "output:"
_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs by name and the output, each of shape [examples, ...]."""

    inputs: Tensors
    output: str
    answers: NDArray[Any]

    @property
    def requests(self) -> list[Tensors]:
        """The inputs as requests of batch size 1."""
        return [
            {name: values[row : row + 1] for name, values in self.inputs.items()}
            for row in range(len(self.answers))
        ]

    def misses(self, answers: NDArray[Any], tolerance: AccuracyLimits) -> list[str]:
        """Return how `answers` to `requests` differ from the recorded ones; empty if they match."""
        try:
            return misses(compare(self.answers, answers), tolerance)
        except ConfigMismatch as error:
            return [str(error)]


def draw_requests(payloads: Payloads) -> list[Tensors]:
    """Return `COUNT` requests of batch size 1, always the same ones."""
    longest = LengthDistribution((payloads.lengths.longest,), (1.0,))
    return replace(payloads, lengths=longest).sample(COUNT, np.random.default_rng(_SEED))


def write_examples(
    path: Path, requests: list[Tensors], output: str, answers: NDArray[np.float64]
) -> None:
    """Write requests and their answers as an npz file. Raises StorageError."""
    arrays: dict[str, NDArray[Any]] = {
        f"{_INPUT}{name}": values for name, values in stack(requests).items()
    }
    arrays[f"{_OUTPUT}{output}"] = answers.astype(np.float32)
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    with storage_errors(path):
        path.write_bytes(content.getvalue())


def read_examples(path: Path) -> Examples:
    """Read what `write_examples` wrote; only arrays, never code.

    Raises:
        UsageError: for anything else, naming the file.
    """
    try:
        with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as stored:
            unpacked = sum(each.file_size for each in stored.zip.infolist())
            if unpacked > _MAX_BYTES:
                raise ValueError(f"arrays must take at most {_MAX_BYTES / 2**20:g} MiB")
            arrays = {name: stored[name] for name in stored.files}
        inputs = {n.removeprefix(_INPUT): a for n, a in arrays.items() if n.startswith(_INPUT)}
        [(name, answers)] = [(n, a) for n, a in arrays.items() if n.startswith(_OUTPUT)]
        counts = {len(array) for array in arrays.values()}
        if len(counts) != 1 or 0 in counts:
            raise ValueError(f"arrays must have one number of rows, at least 1, got {counts}")
    # A single array, which is not an archive, is a TypeError or an AttributeError here.
    except (*UNREADABLE_NPZ, TypeError, AttributeError) as error:
        raise UsageError(f"{path} holds no recorded examples: {error}") from error
    return Examples(inputs, name.removeprefix(_OUTPUT), answers)

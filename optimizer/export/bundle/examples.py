"""Recorded examples: a few inputs of a model, and the outputs of the measured server.

Inputs are those of load tests, never taken from evaluation data. They have one shape, the largest
or that of most requests in the workload's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from optimizer.artifacts.accuracy import compare_outputs, misses
from optimizer.errors import ConfigMismatch, UsageError, storage_errors
from optimizer.files.request_payloads import requests_of_one_shape
from optimizer.files.tensors import from_npz, to_npz
from optimizer.files.untrusted import UnreadableError, read_bytes
from optimizer.workload.model_spec import AccuracyLimits
from optimizer.workload.streams import Payloads, Tensors, stack, with_batch_axis

COUNT = 16
_SEED = 11
_INPUT, _OUTPUT = "input:", "output:"
_MAX_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and outputs by name, each of shape [examples, ...].

    Attributes:
        batched: whether the model's tensors have a batch axis.
    """

    inputs: Tensors
    outputs: Tensors
    batched: bool = True

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    @property
    def requests(self) -> list[Tensors]:
        """The inputs as requests of one inference."""
        return [
            {n: v[row : row + 1] if self.batched else v[row, ...] for n, v in self.inputs.items()}
            for row in range(len(self))
        ]

    def misses(self, answers: Tensors, tolerance: AccuracyLimits) -> list[str]:
        """Return how `answers` to `requests` differ from the recorded ones; empty if they match."""
        try:
            return misses(compare_outputs(self.outputs, answers), tolerance)
        except ConfigMismatch as error:
            return [str(error)]


def draw_requests(payloads: Payloads) -> list[Tensors]:
    """Return up to `COUNT` requests of one inference, always the same ones.

    Raises:
        ChangedRequestsError: when the file of the requests is gone or has changed.
    """
    return requests_of_one_shape(payloads, COUNT, np.random.default_rng(_SEED))


def write_examples(
    path: Path, requests: Sequence[Tensors], answers: Tensors, *, batched: bool
) -> None:
    """Write requests and their answers as an npz file. Raises StorageError."""
    rows = requests if batched else [with_batch_axis(each) for each in requests]
    tensors = {f"{_INPUT}{name}": values for name, values in stack(list(rows)).items()}
    tensors |= {f"{_OUTPUT}{name}": values for name, values in answers.items()}
    with storage_errors(path):
        path.write_bytes(to_npz(tensors))


def read_examples(path: Path, *, batched: bool) -> Examples:
    """Read what `write_examples` wrote; only arrays, never code.

    Raises:
        UsageError: for anything else, naming the file.
    """
    try:
        tensors = from_npz(read_bytes(path), _MAX_BYTES)
        inputs = {n.removeprefix(_INPUT): a for n, a in tensors.items() if n.startswith(_INPUT)}
        outputs = {n.removeprefix(_OUTPUT): a for n, a in tensors.items() if n.startswith(_OUTPUT)}
        if not (inputs and outputs):
            raise UnreadableError("must have inputs and outputs")
        counts = {len(array) if array.ndim else 0 for array in tensors.values()}
        if len(counts) != 1 or 0 in counts:
            raise UnreadableError(f"arrays must have one number of rows, at least 1, got {counts}")
    except UnreadableError as error:
        raise UsageError(f"{path} contains no recorded examples: {error}") from error
    return Examples(inputs, outputs, batched)

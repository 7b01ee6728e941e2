"""Tensors of requests and replies in Triton's gRPC client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import tritonclient.grpc as triton_grpc
from numpy.typing import NDArray

from optimizer.errors import ConfigMismatch
from optimizer.workload.data_types import concatenated, data_type_of
from optimizer.workload.streams import Tensors


def inferences_of(request: Tensors) -> int:
    """Return the number of inferences of a request with a batch axis."""
    return len(next(iter(request.values())))


def joined_output(
    output: str,
    results: Sequence[triton_grpc.InferResult],
    sizes: Sequence[int | None],
    *,
    one_shape: bool,
) -> NDArray[Any]:
    """Join an output of several requests.

    Args:
        sizes: inferences of each request; None without a batch axis.
        one_shape: whether the requests, and so their answers, have one shape.

    Raises:
        ConfigMismatch: when the output is missing, or lacks a row for each inference.
    """
    arrays = [_output(output, result) for result in results]
    for array, size in zip(arrays, sizes, strict=True):
        if size is not None and array.shape[:1] != (size,):
            raise ConfigMismatch(
                f"output {output!r} has no row per request: "
                f"a batch of {size} gives the shape {list(array.shape)}"
            )
    if None in sizes:
        return concatenated([array[None] for array in arrays])
    shapes = sorted({array.shape[1:] for array in arrays})
    if one_shape and len(shapes) > 1:
        raise ConfigMismatch(
            f"output {output!r} must have one shape for all requests of one shape, got "
            f"{list(shapes[0])} and {list(shapes[1])}: leave it out of `outputs`"
        )
    return concatenated(arrays)


def _output(name: str, result: triton_grpc.InferResult) -> NDArray[Any]:
    array = result.as_numpy(name)
    if array is None:
        raise ConfigMismatch(f"the reply has no output {name!r}")
    return np.asarray(array)


def client_inputs(tensors: Tensors) -> list[triton_grpc.InferInput]:
    """Return the tensors of a request as the client library takes them."""
    inputs = []
    for name, array in tensors.items():
        data_type = data_type_of(array)
        item = triton_grpc.InferInput(name, list(array.shape), data_type)
        item.set_data_from_numpy(_for_client(array, data_type))
        inputs.append(item)
    return inputs


def _for_client(array: NDArray[Any], data_type: str) -> NDArray[Any]:
    """Return values of the types that the client library takes."""
    if data_type == "BF16":  # as float32, which holds each of its values
        return array.astype(np.float32)
    if data_type != "BYTES":
        return array
    # Of bytes of a type that derives from bytes, it would send what Python prints.
    plain = np.empty(array.size, dtype=np.object_)
    plain[:] = [each if isinstance(each, str) else bytes(each) for each in array.ravel()]
    return plain.reshape(array.shape)

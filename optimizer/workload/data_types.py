"""Triton's data types as NumPy's, and the binary form in which tensors are sent."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

DataType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64",
    "FP16", "FP32", "FP64", "BF16", "BYTES",
]  # fmt: skip

NUMPY_TYPES: Mapping[DataType, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "BYTES": np.dtype(np.object_),
}
"""Elements of BYTES tensors are Python's bytes."""

_TRITON_TYPES = {dtype: name for name, dtype in NUMPY_TYPES.items()}

FLOATING: frozenset[DataType] = frozenset({"FP16", "FP32", "FP64", "BF16"})


def concatenated(arrays: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Join arrays along their first axis; where their other axes differ, into an array of arrays.

    Args:
        arrays: shape [rows, ...] each.

    Returns:
        Shape [all rows, ...], or an array of objects [all rows], see `is_ragged`.
    """
    if len({array.shape[1:] for array in arrays}) == 1:
        joined: NDArray[Any] = np.concatenate(arrays)
        return joined
    rows = [row for array in arrays for row in array]
    ragged = np.empty(len(rows), dtype=np.object_)
    for n, row in enumerate(rows):
        ragged[n] = row
    return ragged


def is_ragged(array: NDArray[Any]) -> bool:
    """Return whether an array holds arrays of different shapes."""
    return array.dtype == np.object_ and array.size > 0 and isinstance(array.flat[0], np.ndarray)


def data_type_of(array: NDArray[Any]) -> DataType:
    """Return Triton's data type of an array. Raises KeyError where it has none."""
    return _TRITON_TYPES[array.dtype]


def encoded(array: NDArray[Any]) -> bytes:
    """Return the elements in row-major order, as the KServe v2 protocol sends them in binary.

    Each element of a BYTES tensor follows its length in four bytes.
    """
    if array.dtype != np.object_:
        return np.ascontiguousarray(array).tobytes()
    return b"".join(struct.pack("<I", len(each)) + each for each in array.ravel())


def decoded(content: bytes, data_type: DataType, shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the array of `encoded`. Raises ValueError where the content does not fit the shape."""
    if data_type != "BYTES":
        return np.frombuffer(content, NUMPY_TYPES[data_type]).reshape(shape).copy()
    elements: list[bytes] = []
    at = 0
    while at < len(content):
        length = int.from_bytes(content[at : at + 4], "little")
        start, at = at + 4, at + 4 + length
        if at > len(content):
            raise ValueError("the last element of a BYTES tensor is cut off")
        elements.append(content[start:at])
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)

"""Requests as perf_analyzer's `--input-data` describes them in JSON.

An entry of "data" has a value for each input: a list, an object with "content" and "shape", or an
object with "b64", the tensor's bytes. Entries may be in lists, one for each sequence.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.files.request_checks import Arrays, as_type_needs, short
from optimizer.files.untrusted import UnreadableError
from optimizer.workload.data_types import NUMPY_TYPES, DataType, decoded
from optimizer.workload.streams import TensorSpec


def entries(document: object) -> Iterator[tuple[str, object]]:
    """Yield the entries of a document in order, each after its index for messages.

    Raises:
        UnreadableError: where the document has none.
    """
    data = document.get("data") if isinstance(document, Mapping) else None
    if not isinstance(data, list) or not data:
        raise UnreadableError('must be an object with the list "data" of requests')
    if len({isinstance(entry, list) for entry in data}) > 1:
        raise UnreadableError('"data" must have either objects or lists of objects, not both')
    for n, entry in enumerate(data):
        if isinstance(entry, list):
            yield from ((f"data[{n}][{step}]", each) for step, each in enumerate(entry))
        else:
            yield f"data[{n}]", entry


def entry_arrays(entry: object, tensors: Sequence[TensorSpec]) -> Arrays:
    """Return the tensors of an entry, shape [1, ...].

    Raises:
        ValueError: with the input, the rule that it breaks and the value.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(f"must be an object of tensors by input, got {short(entry)}")
    by_name = {spec.name: spec for spec in tensors}
    arrays: Arrays = {}
    for name, value in entry.items():
        if name not in by_name:
            arrays[name] = np.empty(0)
            continue
        try:
            arrays[name] = _tensor(value, by_name[name])[None]
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
    return arrays


def from_bytes(content: bytes, spec: TensorSpec, shape: Sequence[int] | None) -> NDArray[Any]:
    """Return a tensor of its bytes in row-major, little-endian order.

    Args:
        shape: without the batch; None to conclude it from the number of elements.

    Raises:
        ValueError: with the rule that it breaks.
    """
    if spec.data_type == "BYTES":
        try:
            texts = _elements(content)
        except ValueError as error:
            rule = "must have each text after its length in 4 bytes, as in Triton's requests"
            raise ValueError(f"{rule}: {error}") from error
        return texts.reshape(_shape(spec, shape, len(texts)))
    size = NUMPY_TYPES[spec.data_type].itemsize
    count, rest = divmod(len(content), size)
    if rest:
        raise ValueError(f"must have a multiple of {size} bytes, got {len(content)}")
    return decoded(content, spec.data_type, _shape(spec, shape, count))


def _elements(content: bytes) -> NDArray[Any]:
    return decoded(content, "BYTES", (-1,)) if content else np.empty(0, dtype=np.object_)


def _tensor(value: object, spec: TensorSpec) -> NDArray[Any]:
    content, shape = value, None
    if isinstance(value, Mapping):
        if unknown := set(value) - {"content", "shape", "b64"}:
            raise ValueError(f"must have only content, shape and b64, got {short(min(unknown))}")
        content, shape = value.get("content", value), value.get("shape")
        _check_shape(shape)
    if isinstance(content, Mapping):
        return from_bytes(_from_base64(content.get("b64")), spec, shape)
    if not isinstance(content, list):
        raise ValueError(f'must be a list, or have "content" or "b64", got {short(value)}')
    values = _flat(content, spec.data_type)
    return values.reshape(_shape(spec, shape, len(values)))


def _check_shape(shape: object) -> None:
    if shape is not None and not (
        isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)
    ):
        raise ValueError(f"must have a list of sizes as its shape, got {short(shape)}")


def _from_base64(text: object) -> bytes:
    if not isinstance(text, str):
        raise ValueError(f"must have a text as its b64, got {short(text)}")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"must have base64 as its b64: {error}") from error


def _flat(content: list[Any], data_type: DataType) -> NDArray[Any]:
    """Return the elements of a list, shape [n]."""
    if data_type == "BYTES":
        if not all(isinstance(text, str) for text in content):
            raise ValueError(f"must be a list of texts, got {short(content)}")
        texts = np.empty(len(content), dtype=np.object_)
        texts[:] = [text.encode() for text in content]
        return texts
    try:
        values = np.asarray(content).reshape(-1)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"must be a regular list of numbers, got {short(content)}") from error
    return as_type_needs(values, data_type)


def _shape(spec: TensorSpec, shape: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """Return the shape of `count` elements, as it is given or concluded from the declared one."""
    if shape is None:
        if len(spec.free) > 1:
            declared = ", ".join(map(str, spec.shape))
            raise ValueError(f'must have "shape", since [{declared}] has several free dimensions')
        fixed = math.prod(size for size in spec.shape if isinstance(size, int))
        shape = spec.sized(dict.fromkeys(spec.free, count // fixed))
    if math.prod(shape) != count:
        raise ValueError(f"must have the elements of shape {list(shape)}, got {count}")
    return tuple(shape)

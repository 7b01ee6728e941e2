"""Tensors as plain arrays of an .npz file, which needs no pickle for texts either."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.files.untrusted import UNREADABLE_NPZ, UnreadableError
from optimizer.workload.data_types import (
    DataType,
    concatenated,
    data_type_of,
    decoded,
    encoded,
    is_ragged,
)

_BYTES, _BF16, _SHAPE = "|BYTES", "|BF16", "|shape"
"""Ends of the names of arrays that hold the encoded elements and the shape of a tensor that NumPy
cannot store plainly."""

_ROW = "|row"
"""Between the name of a tensor whose rows differ in shape, and the number of one row."""

_ENCODED: Mapping[str, DataType] = {_BYTES: "BYTES", _BF16: "BF16"}


def to_npz(tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the content of an .npz file that holds tensors of any of Triton's data types."""
    arrays: dict[str, NDArray[Any]] = {}
    for name, array in _plain(tensors):
        end = f"|{data_type_of(array)}"
        if end in _ENCODED:
            arrays[f"{name}{end}"] = np.frombuffer(encoded(array), np.uint8)
            arrays[f"{name}{_SHAPE}"] = np.asarray(array.shape, np.int64)
        else:
            arrays[name] = array
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    return content.getvalue()


def _plain(tensors: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the tensors; the rows of one whose rows differ in shape each by itself."""
    for name, array in tensors.items():
        if is_ragged(array):
            yield from ((f"{name}{_ROW}{n}", row[None]) for n, row in enumerate(array))
        else:
            yield name, array


def from_npz(source: bytes | Path, most_bytes: int = 2**63) -> dict[str, NDArray[Any]]:
    """Return the tensors of `to_npz`, or of any .npz file; only arrays, never code.

    Args:
        source: a file, or its content.
        most_bytes: largest size of all arrays.

    Raises:
        UnreadableError: for anything else.
    """
    try:
        # NumPy leaves a damaged file open where it is given the path.
        with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as file:
            arrays = _arrays(np.load(file, allow_pickle=False), most_bytes)
        plain = {n: a for n, a in arrays.items() if not n.endswith((_BYTES, _BF16, _SHAPE))}
        return _with_rows_joined(plain | dict(_encoded_tensors(arrays)))
    except UnreadableError:
        raise
    except (*UNREADABLE_NPZ, TypeError, AttributeError, KeyError) as error:
        raise UnreadableError(f"must be an .npz file of plain arrays: {error}") from error


def _arrays(loaded: object, most_bytes: int) -> dict[str, NDArray[Any]]:
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise UnreadableError("must be an .npz file of plain arrays: it is one bare array")
    with loaded as stored:
        if sum(each.file_size for each in stored.zip.infolist()) > most_bytes:
            raise UnreadableError(f"arrays must take at most {most_bytes / 2**20:g} MiB")
        return {name: stored[name] for name in stored.files}


def _with_rows_joined(tensors: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    joined: dict[str, NDArray[Any]] = {}
    rows: dict[str, list[NDArray[Any]]] = {}
    for key, array in tensors.items():
        name, row, _ = key.partition(_ROW)
        if row:
            rows.setdefault(name, []).append(array)
        else:
            joined[key] = array
    return joined | {name: concatenated(arrays) for name, arrays in rows.items()}


def _encoded_tensors(
    arrays: Mapping[str, NDArray[Any]],
) -> Iterator[tuple[str, NDArray[Any]]]:
    for key, content in arrays.items():
        for end, data_type in _ENCODED.items():
            if key.endswith(end):
                name = key.removesuffix(end)
                shape = tuple(arrays[f"{name}{_SHAPE}"].tolist())
                yield name, decoded(content.tobytes(), data_type, shape)

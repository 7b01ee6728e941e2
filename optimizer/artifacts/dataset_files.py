"""Inputs from an .npz file, a JSON Lines file, or the space file itself.

Rows are numbered from 0, and padded to the workload's longest length as requests are.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import Mistake, UsageError
from optimizer.files.untrusted import UNREADABLE_NPZ, UnreadableError, parse_json
from optimizer.workload.data_types import FLOATING, NUMPY_TYPES, DataType
from optimizer.workload.streams import LENGTH, Payloads, Tensors, TensorSpec

_SHOWN = 20
_KINDS: Mapping[DataType, tuple[str, Any]] = {
    **dict.fromkeys(FLOATING, ("floating-point numbers", np.floating)),
    "BOOL": ("truth values", np.bool_),
    "BYTES": ("texts", np.character),
}
"""What data of a type must hold, if not integers."""

Arrays = dict[str, NDArray[Any]]


def read_rows(path: Path, samples: int, payloads: Payloads) -> list[Tensors]:
    """Read the first `samples` rows of a file.

    Args:
        path: .jsonl with one JSON object of values by input tensor a line; otherwise an .npz with
            one array [rows, ...] for each input tensor.

    Returns:
        Requests of batch 1 and equal shapes.

    Raises:
        UsageError: every mistake of the file, with the row or tensor, the rule and the value.
    """
    if path.suffix == ".jsonl":
        return _from_objects(_objects(path, samples), samples, payloads, str(path))
    arrays = _load(path)
    _refuse(str(path), _mistakes(arrays, samples, payloads))
    rows = [{name: arrays[name][n : n + 1] for name in arrays} for n in range(samples)]
    return _requests(rows, payloads, str(path))


def rows_from_tensors(text: str, samples: int, payloads: Payloads, source: str) -> list[Tensors]:
    """Return the first `samples` rows of a JSON object of lists of rows, by input tensor.

    Args:
        source: file or key that holds them, for messages.

    Raises:
        UsageError: every mistake, as `read_rows`.
    """
    columns: dict[str, list[object]] = json.loads(text)
    rule = f"must have at least {samples} rows"
    short = {name: len(rows) for name, rows in columns.items() if len(rows) < samples}
    _refuse(source, [Mistake(name, rule, str(count)) for name, count in short.items()])
    rows = [{name: values[n] for name, values in columns.items()} for n in range(samples)]
    return _from_objects(rows, samples, payloads, source)


def _from_objects(
    rows: Sequence[object], samples: int, payloads: Payloads, source: str
) -> list[Tensors]:
    mistakes: list[Mistake] = []
    valid: list[Arrays] = []
    for number, row in enumerate(rows):
        try:
            arrays = _arrays(row, payloads.tensors)
            wrong = _mistakes(arrays, 1, payloads)
        except ValueError as error:
            mistakes.append(Mistake(f"row {number}", str(error), _short(row)))
            continue
        mistakes += [replace(each, key=f"row {number}: {each.key}") for each in wrong]
        if not wrong:
            valid.append(arrays)
    if len(rows) < samples:
        mistakes.append(Mistake("rows", f"must be at least {samples}", str(len(rows))))
    _refuse(source, mistakes)
    return _requests(valid, payloads, source)


def _requests(rows: Sequence[Arrays], payloads: Payloads, source: str) -> list[Tensors]:
    """Return rows as requests of one inference, which have one shape."""
    requests = [_padded(row, payloads) for row in rows]
    for spec in payloads.tensors:
        shapes = sorted({request[spec.name].shape for request in requests})
        if len(shapes) > 1:
            rule = f"must have one size in every row along {', '.join(spec.free)}"
            sizes = " and ".join(str(list(shape[1:])) for shape in shapes[:2])
            _refuse(source, [Mistake(spec.name, rule, sizes)])
    if payloads.batched:
        return requests
    return [{name: values[0, ...] for name, values in each.items()} for each in requests]


def _objects(path: Path, samples: int) -> list[object]:
    """Return the first values of a JSON Lines file; a line that is not JSON as its text."""
    try:
        with path.open(encoding="utf-8") as file:
            return [_parsed(line) for line in islice(file, samples)]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: must be a readable file of UTF-8 text: {error}") from error


def _parsed(line: str) -> object:
    try:
        return parse_json(line)
    except UnreadableError:
        return line.rstrip("\n")


def _arrays(row: object, specs: Iterable[TensorSpec]) -> Arrays:
    """Return a row as arrays [1, ...]. Raises ValueError with the rule that it breaks."""
    if not isinstance(row, dict):
        raise ValueError("must be a JSON object of values by input")
    types = {spec.name: spec.data_type for spec in specs}
    arrays: Arrays = {}
    for name, values in row.items():
        try:
            array = np.asarray([values])
        except (ValueError, OverflowError) as error:  # lists of unequal length
            texts = types.get(name) == "BYTES"
            rule = f"must be a regular list of {'texts' if texts else 'numbers'}"
            raise ValueError(f"{name} {rule}") from error
        # JSON does not distinguish 1 from 1.0.
        whole = np.issubdtype(array.dtype, np.integer)
        floating = types.get(name) in FLOATING
        arrays[name] = array.astype(np.float64) if floating and whole else array
    return arrays


def _padded(row: Arrays, payloads: Payloads) -> Tensors:
    """Return a row in the tensors' own types, padded as requests are."""
    longest = payloads.lengths.longest
    padded: Tensors = {}
    for spec in payloads.tensors:
        values = _typed(row[spec.name], spec.data_type)
        missing = [
            (0, longest - size if axis == LENGTH else 0)
            for size, axis in zip(values.shape[1:], spec.shape, strict=True)
        ]
        pad: Any = b"" if spec.data_type == "BYTES" else spec.pad
        padded[spec.name] = np.pad(values, [(0, 0), *missing], constant_values=pad)
    return padded


def _typed(values: NDArray[Any], data_type: DataType) -> NDArray[Any]:
    if data_type != "BYTES":
        return values.astype(NUMPY_TYPES[data_type])
    texts = np.empty(values.shape, dtype=np.object_)
    texts[...] = np.vectorize(_as_bytes, otypes=[np.object_])(values)
    return texts


def _as_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _refuse(source: str, mistakes: Sequence[Mistake]) -> None:
    if mistakes:
        more = [f"  and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
        lines = [f"{source} cannot be used:", *(f"  {m}" for m in mistakes[:_SHOWN]), *more]
        raise UsageError("\n".join(lines))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _load(path: Path) -> Arrays:
    try:
        archive = np.load(path, allow_pickle=False)
        # A .npy file loads as its array.
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise UsageError(f"{path}: must be an .npz file, got one bare array")
        with archive:
            return {name: archive[name] for name in archive.files}
    except UNREADABLE_NPZ as error:
        raise UsageError(
            f"{path}: must be a readable .npz file of plain arrays: {error}"
        ) from error


def _mistakes(arrays: Arrays, samples: int, payloads: Payloads) -> list[Mistake]:
    names = sorted(spec.name for spec in payloads.tensors)
    unknown = [
        Mistake(name, f"is not an input; the inputs are {', '.join(names)}")
        for name in sorted(arrays.keys() - set(names))
    ]
    most = payloads.largest_sizes()
    wrong_tensors = [_mistake(arrays, spec, samples, most) for spec in payloads.tensors]
    return [*unknown, *filter(None, wrong_tensors)] or _length_mistakes(arrays, payloads)


def _mistake(
    arrays: Arrays, spec: TensorSpec, samples: int, most: Mapping[str, int]
) -> Mistake | None:
    if spec.name not in arrays:
        return Mistake(spec.name, "is missing")
    values = arrays[spec.name]
    return _shape_mistake(spec, values, samples, most) or _value_mistake(spec, values[:samples])


def _length_mistakes(arrays: Arrays, payloads: Payloads) -> list[Mistake]:
    """Return a mistake for each free dimension that has several sizes in one row."""
    mistakes = []
    for dimension in dict.fromkeys(name for spec in payloads.tensors for name in spec.free):
        sizes = {s.name: _sizes(s, arrays[s.name]).get(dimension, []) for s in payloads.tensors}
        if len({size for own in sizes.values() for size in own}) > 1:
            listed = ", ".join(f"{name} {own}" for name, own in sizes.items() if own)
            key = "lengths" if dimension == LENGTH else dimension
            mistakes.append(Mistake(key, "must be the same in every tensor", listed))
    return mistakes


def _sizes(spec: TensorSpec, values: NDArray[Any]) -> dict[str, list[int]]:
    """Return the sizes of each free dimension in a tensor."""
    sizes: dict[str, list[int]] = {}
    for size, axis in zip(values.shape[1:], spec.shape, strict=True):
        if isinstance(axis, str):
            sizes.setdefault(axis, []).append(size)
    return sizes


def _shape_mistake(
    spec: TensorSpec, values: NDArray[Any], samples: int, most: Mapping[str, int]
) -> Mistake | None:
    wanted = ", ".join(map(str, spec.shape))
    fits = len(values.shape) == len(spec.shape) + 1 and all(
        n == axis or isinstance(axis, str)
        for n, axis in zip(values.shape[1:], spec.shape, strict=True)
    )
    if not fits:
        return Mistake(spec.name, f"must have shape [rows, {wanted}]", str(list(values.shape)))
    if len(values) < samples:
        return Mistake(spec.name, f"must have at least {samples} rows", str(len(values)))
    for axis, sizes in _sizes(spec, values).items():
        if any(not 1 <= n <= most[axis] for n in sizes):
            what = "long (longest request)" if axis == LENGTH else f"along {axis}"
            return Mistake(spec.name, f"must be 1 to {most[axis]} {what}", str(sizes))
    return None


def _value_mistake(spec: TensorSpec, values: NDArray[Any]) -> Mistake | None:
    kind, abstract = _KINDS.get(spec.data_type, ("integers", np.integer))
    # Texts are of type S or U in files, and objects once they are bytes.
    fits = np.issubdtype(values.dtype, abstract) or (
        spec.data_type == "BYTES" and values.dtype == np.object_
    )
    if not fits:
        return Mistake(spec.name, f"must hold {kind}", str(values.dtype))
    if spec.data_type in ("BOOL", "BYTES") or spec.choices:
        return None  # values of one's own may be others than those that requests are drawn from
    allowed = (values >= spec.minimum) & (values <= spec.maximum) | (values == spec.pad)
    if allowed.all():
        return None
    row = f" in row {np.argwhere(~allowed)[0][0]}" if len(values) > 1 else ""
    rule = f"must be {spec.minimum:g} to {spec.maximum:g}, or {spec.pad:g} as padding"
    return Mistake(spec.name, rule, f"{values[~allowed].flat[0]}{row}")

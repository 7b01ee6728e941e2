"""What the tensors of a file of requests must be: names, types, shapes and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import Mistake, UsageError
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
"""Tensors of a file by name, each of shape [rows, ...]."""


@dataclass(frozen=True)
class Expected:
    """The tensors that a file must hold.

    Attributes:
        largest: largest size of free dimensions; others have any size.
        elsewhere: inputs whose values the space file gives, so that the file may not.
    """

    tensors: tuple[TensorSpec, ...]
    largest: Mapping[str, int] = field(default_factory=dict)
    elsewhere: frozenset[str] = frozenset()

    @classmethod
    def in_data_set(cls, payloads: Payloads) -> Expected:
        """Return every input, of sizes up to those of requests."""
        return cls(payloads.tensors, payloads.largest_sizes())

    @classmethod
    def in_requests(cls, payloads: Payloads) -> Expected:
        """Return the inputs that have no values in the space file, of any size."""
        own = frozenset(spec.name for spec in payloads.tensors if not spec.from_file)
        return cls(tuple(s for s in payloads.tensors if s.from_file), elsewhere=own)


def refuse(source: str, mistakes: Sequence[Mistake]) -> None:
    """Raise UsageError with the mistakes of a file or key; nothing without one."""
    if mistakes:
        more = [f"  and {len(mistakes) - _SHOWN} more"] if len(mistakes) > _SHOWN else []
        lines = [f"{source} cannot be used:", *(f"  {m}" for m in mistakes[:_SHOWN]), *more]
        raise UsageError("\n".join(lines))


def as_type_needs(array: NDArray[Any], data_type: DataType | None) -> NDArray[Any]:
    """Return numbers as a type needs them, since JSON does not distinguish 1 from 1.0."""
    floating = data_type in FLOATING and np.issubdtype(array.dtype, np.integer)
    return array.astype(np.float64) if floating else array


def short(value: object) -> str:
    """Return a value on one line of at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def mistakes_of(arrays: Arrays, rows: int, expected: Expected) -> list[Mistake]:
    """Return every mistake of tensors, of which the first `rows` rows are used."""
    names = sorted(spec.name for spec in expected.tensors)
    unknown = [
        Mistake(name, _unknown(name, names, expected))
        for name in sorted(arrays.keys() - set(names))
    ]
    wrong = [_mistake(arrays, spec, rows, expected.largest) for spec in expected.tensors]
    return [*unknown, *filter(None, wrong)] or _size_mistakes(arrays, expected)


def typed_rows(rows: Sequence[Arrays], tensors: Sequence[TensorSpec]) -> list[Tensors]:
    """Return rows without mistakes in the tensors' own types, each without the axis of rows."""
    return [
        {spec.name: _typed(row[spec.name][0, ...], spec.data_type) for spec in tensors}
        for row in rows
    ]


def _typed(values: NDArray[Any], data_type: DataType) -> NDArray[Any]:
    if data_type != "BYTES":
        return values.astype(NUMPY_TYPES[data_type])
    texts = np.empty(values.shape, dtype=np.object_)
    texts[...] = np.vectorize(_as_bytes, otypes=[np.object_])(values)
    return texts


def _as_bytes(text: Any) -> bytes:
    return text if isinstance(text, bytes) else str(text).encode()


def _unknown(name: str, names: Sequence[str], expected: Expected) -> str:
    if name in expected.elsewhere:
        return "has values in the space file too: leave them out there, or this tensor here"
    return f"is not an input; the inputs are {', '.join(names)}"


def _mistake(
    arrays: Arrays, spec: TensorSpec, rows: int, largest: Mapping[str, int]
) -> Mistake | None:
    if spec.name not in arrays:
        return Mistake(spec.name, "is missing")
    values = arrays[spec.name]
    return _shape_mistake(spec, values, rows, largest) or _value_mistake(spec, values[:rows])


def _size_mistakes(arrays: Arrays, expected: Expected) -> list[Mistake]:
    """Return a mistake for each free dimension that has several sizes in one row."""
    mistakes = []
    for dimension in dict.fromkeys(name for spec in expected.tensors for name in spec.free):
        sizes = {s.name: _sizes(s, arrays[s.name]).get(dimension, []) for s in expected.tensors}
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
    spec: TensorSpec, values: NDArray[Any], rows: int, largest: Mapping[str, int]
) -> Mistake | None:
    wanted = ", ".join(["rows", *map(str, spec.shape)])
    fits = len(values.shape) == len(spec.shape) + 1 and all(
        n == axis or isinstance(axis, str)
        for n, axis in zip(values.shape[1:], spec.shape, strict=True)
    )
    if not fits:
        return Mistake(spec.name, f"must have shape [{wanted}]", str(list(values.shape)))
    if len(values) < rows:
        return Mistake(spec.name, f"must have at least {rows} rows", str(len(values)))
    for axis, sizes in _sizes(spec, values).items():
        most = largest.get(axis)
        if min(sizes) < 1 or (most is not None and max(sizes) > most):
            range_text = f"1 to {most}" if most is not None else "at least 1"
            what = "long (longest request)" if axis == LENGTH else f"along {axis}"
            return Mistake(spec.name, f"must be {range_text} {what}", str(sizes))
    return None


def _value_mistake(spec: TensorSpec, values: NDArray[Any]) -> Mistake | None:
    kind, abstract = _KINDS.get(spec.data_type, ("integers", np.integer))
    # Texts are of type S or U in files, and objects once they are bytes.
    fits = np.issubdtype(values.dtype, abstract) or (
        spec.data_type == "BYTES" and values.dtype == np.object_
    )
    if not fits:
        return Mistake(spec.name, f"must hold {kind}", str(values.dtype))
    if spec.data_type in ("BOOL", "BYTES"):
        return None
    # Values of one's own may be others than those that requests are drawn from.
    if spec.choices or spec.from_file:
        return _range_mistake(spec, values)
    allowed = (values >= spec.minimum) & (values <= spec.maximum) | (values == spec.pad)
    rule = f"must be {spec.minimum:g} to {spec.maximum:g}, or {spec.pad:g} as padding"
    return _first_wrong(spec, values, ~allowed, rule)


def _range_mistake(spec: TensorSpec, values: NDArray[Any]) -> Mistake | None:
    """Return a mistake where the tensor's type cannot hold a value."""
    dtype = NUMPY_TYPES[spec.data_type]
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        beyond = (values < limits.min) | (values > limits.max)
        rule = f"must be {limits.min} to {limits.max} as {spec.data_type}"
        return _first_wrong(spec, values, beyond, rule)
    with np.errstate(over="ignore"):
        beyond = np.isfinite(values) & ~np.isfinite(values.astype(dtype))
    return _first_wrong(spec, values, beyond, f"must be a number that fits in {spec.data_type}")


def _first_wrong(
    spec: TensorSpec, values: NDArray[Any], wrong: NDArray[np.bool_], rule: str
) -> Mistake | None:
    if not wrong.any():
        return None
    row = f" in row {np.argwhere(wrong)[0][0]}" if len(values) > 1 else ""
    return Mistake(spec.name, rule, f"{values[wrong].flat[0]}{row}")

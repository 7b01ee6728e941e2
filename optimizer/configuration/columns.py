"""A table of points: columns of equal length by their names. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, NDArray[Any]]

Mask = NDArray[np.bool_]
"""Which rows are meant, shape [rows]."""


def column(values: Sequence[object]) -> NDArray[Any]:
    """Return values as a column: of numbers or truth values where all are of that type."""
    [kind, *others] = {type(value) for value in values}
    dtype = kind if kind in (int, bool) and not others else object
    return np.fromiter(values, dtype=dtype, count=len(values))


def length(table: Columns) -> int:
    """Return the number of rows."""
    return len(next(iter(table.values())))


def selected(table: Columns, which: Mask | NDArray[np.int64]) -> Columns:
    """Return the rows of a mask, or those of these numbers."""
    return {name: values[which] for name, values in table.items()}


def first_of_equals(columns: Sequence[NDArray[Any]]) -> NDArray[np.int64]:
    """Return the number of the first row of each that are equal in these columns."""
    first: dict[tuple[object, ...], int] = {}
    for row, key in enumerate(zip(*(values.tolist() for values in columns), strict=True)):
        first.setdefault(key, row)
    return np.array([*first.values()])

"""Requests of load tests, with the values of a file where the workload has one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import ChangedRequestsError, Mistake
from optimizer.files.request_checks import Expected, refuse, typed_rows
from optimizer.files.request_files import content_digest, read_rows
from optimizer.workload.request_sizes import Dimension, LengthDistribution, RequestFile
from optimizer.workload.streams import LENGTH, Payloads, Tensors

_MOST_BYTES = 256 * 2**20
"""Of all tensors: the program and each load client hold them in memory."""


def with_file(payloads: Payloads, path: Path) -> Payloads:
    """Read a file wholly; return the requests with its values and their sizes.

    Raises:
        UsageError: every mistake of the file.
    """
    rows, unused = _rows(payloads, path)
    sizes = [payloads.sizes_of(row) for row in rows]
    names = sorted(payloads.dimensions_of_file - {LENGTH})
    shapes = Counter(tuple(own[name] for name in names) for own in sizes)
    added = tuple(Dimension(name, _counted(own[name] for own in sizes)) for name in names)
    lengths = payloads.lengths
    if LENGTH in payloads.dimensions_of_file:
        lengths = _counted(own[LENGTH] for own in sizes)
    return replace(
        payloads,
        lengths=lengths,
        # A dimension that follows one of the file comes after it.
        dimensions=(*added, *payloads.dimensions),
        file=RequestFile(
            path,
            content_digest(path),
            len(rows),
            tuple(shapes.values()),
            binary=any(_is_binary(array) for row in rows for array in row.values()),
            unused=unused,
        ),
    )


def rows_of_file(payloads: Payloads) -> list[Tensors]:
    """Read the rows of the requests' file again, for `Payloads.sample`; none without a file.

    Raises:
        ChangedRequestsError: when the file is gone or has another content.
    """
    file = payloads.file
    if file is None:
        return []
    if not file.path.exists():
        raise ChangedRequestsError(f"{file.path}: the file of requests must exist; restore it")
    if content_digest(file.path) != file.sha256:
        raise ChangedRequestsError(
            f"{file.path}: must have the requests that were measured (SHA-256 {file.sha256}); it"
            " has changed since"
        )
    return _rows(payloads, file.path)[0]


def requests_of_one_shape(
    payloads: Payloads, count: int, rng: np.random.Generator
) -> list[Tensors]:
    """Return requests of one inference and of equal shapes.

    Without a file, these are `count` requests of the largest shape. Otherwise they are at most as
    many different requests of the file, of the shape that most of them have.

    Raises:
        ChangedRequestsError: as `rows_of_file`.
    """
    payloads = payloads.largest()
    if payloads.file is None:
        return payloads.sample(count, rng)
    rows = rows_of_file(payloads)
    return of_most_frequent_shape(payloads.sample(len(rows), rng, rows=rows))[:count]


def of_most_frequent_shape(requests: Sequence[Tensors]) -> list[Tensors]:
    """Return the requests of the most frequent shape; the first one of several."""
    shapes = [tuple((name, a.shape) for name, a in request.items()) for request in requests]
    [(chosen, _)] = Counter(shapes).most_common(1)
    return [each for each, shape in zip(requests, shapes, strict=True) if shape == chosen]


def _rows(payloads: Payloads, path: Path) -> tuple[list[Tensors], tuple[str, ...]]:
    """Return the rows of a file, and its unused keys."""
    expected = Expected.in_requests(payloads)
    read = read_rows(path, expected)
    rows = typed_rows(read.rows, expected.tensors)
    size = sum(_size(array) for row in rows for array in row.values())
    if size > _MOST_BYTES:
        rule = f"must take at most {_MOST_BYTES / 2**20:g} MiB as tensors; keep fewer of them"
        refuse(str(path), [Mistake("requests", rule, f"{size / 2**20:,.0f} MiB")])
    return rows, read.unused


def _is_binary(array: NDArray[Any]) -> bool:
    try:
        for text in array.flat if array.dtype == np.object_ else ():
            text.decode()
    except UnicodeDecodeError:
        return True
    return False


def _size(array: NDArray[Any]) -> int:
    """Return the bytes of a tensor; those of texts themselves."""
    return sum(map(len, array.flat)) if array.dtype == np.object_ else array.nbytes


def _counted(sizes: Iterable[int]) -> LengthDistribution:
    counts = sorted(Counter(sizes).items())
    return LengthDistribution(tuple(n for n, _ in counts), tuple(float(c) for _, c in counts))

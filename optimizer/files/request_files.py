"""Readers of files of requests: .npz, .jsonl, perf_analyzer's .json, and directories of files.

Rows are numbered from 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from optimizer.errors import Mistake, UsageError
from optimizer.files.perf_analyzer_data import entries, entry_arrays, from_bytes
from optimizer.files.request_checks import (
    Arrays,
    Expected,
    as_type_needs,
    mistakes_of,
    refuse,
    short,
)
from optimizer.files.tensors import from_npz
from optimizer.files.untrusted import UnreadableError, parse_json, read_bytes
from optimizer.workload.streams import TensorSpec

SUFFIXES = (".npz", ".jsonl", ".json")
"""Of the files that can be read, besides directories."""

_MOST_BYTES = 256 * 2**20
"""Largest content of one file, which is read as a whole."""

_MOST_UNPACKED = 2**32
"""Largest size of the arrays of an .npz file."""


@dataclass(frozen=True)
class FileRows:
    """The rows of a file.

    Attributes:
        rows: tensors by input, each of shape [1, ...], in types that hold the inputs' values.
        unused: keys beside the rows that have no meaning here.
    """

    rows: list[Arrays]
    unused: tuple[str, ...] = ()


def read_rows(path: Path, expected: Expected, count: int | None = None) -> FileRows:
    """Read the rows of a file or directory.

    Args:
        count: number of rows to read; None for all, at least one.

    Raises:
        UsageError: every mistake, with the row or tensor, the rule and the value.
    """
    try:
        if path.is_dir():
            return FileRows(_from_directory(path, expected, count))
        match path.suffix:
            case ".jsonl":
                lines = _json_lines(path, count)
                return FileRows(rows_of_objects(lines, expected, count, str(path)))
            case ".json":
                document = parse_json(read_bytes(path, _MOST_BYTES))
                rows = list(islice(entries(document), count))
                checked = _checked(rows, entry_arrays, expected, count, str(path))
                return FileRows(checked, tuple(key[:80] for key in document if key != "data"))
            case _:
                return FileRows(_from_npz(path, expected, count))
    except UnreadableError as error:
        raise UsageError(f"{path}: {error}") from error


def rows_of_objects(
    rows: Iterable[object], expected: Expected, count: int | None, source: str
) -> list[Arrays]:
    """Return rows of JSON objects of values by input, as `FileRows` has them.

    Args:
        source: file or key that holds them, for messages.
    """
    numbered = [(f"row {number}", row) for number, row in enumerate(rows)]
    return _checked(numbered, _object_arrays, expected, count, source)


def content_digest(path: Path) -> str:
    """Return the SHA-256 of a file, or of the names and contents of a directory's files.

    Raises:
        UsageError: when it cannot be read.
    """
    try:
        if not path.is_dir():
            return _file_digest(path)
        listed = [f"{_file_digest(file)} {file.name}\n" for file in _files(path)]
    except (OSError, UnreadableError) as error:
        raise UsageError(f"{path}: must be readable ({error})") from error
    return hashlib.sha256("".join(listed).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checked(
    rows: Sequence[tuple[str, object]],
    to_arrays: Callable[..., Arrays],
    expected: Expected,
    count: int | None,
    source: str,
) -> list[Arrays]:
    """Return the arrays of rows, each of which is checked by itself."""
    mistakes: list[Mistake] = []
    valid: list[Arrays] = []
    for label, row in rows:
        try:
            arrays = to_arrays(row, expected.tensors)
            wrong = mistakes_of(arrays, 1, expected)
        except ValueError as error:
            mistakes.append(Mistake(label, str(error)))
            continue
        mistakes += [replace(each, key=f"{label}: {each.key}") for each in wrong]
        if not wrong:
            valid.append(arrays)
    least = count or 1
    if len(rows) < least:
        mistakes.append(Mistake("rows", f"must be at least {least}", str(len(rows))))
    refuse(source, mistakes)
    return valid


def _json_lines(path: Path, count: int | None) -> list[object]:
    """Return the values of a JSON Lines file; a line that is not JSON as its text."""
    try:
        with path.open(encoding="utf-8") as file:
            return [_parsed(line) for line in islice(file, count)]
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"must be a readable file of UTF-8 text: {error}") from error


def _parsed(line: str) -> object:
    try:
        return parse_json(line)
    except UnreadableError:
        return line.rstrip("\n")


def _object_arrays(row: object, tensors: Iterable[TensorSpec]) -> Arrays:
    """Return a row as arrays [1, ...]. Raises ValueError with the broken rule and the value."""
    if not isinstance(row, dict):
        raise ValueError(f"must be a JSON object of values by input, got {short(row)}")
    types = {spec.name: spec.data_type for spec in tensors}
    arrays: Arrays = {}
    for name, values in row.items():
        try:
            array = np.asarray([values])
        except (ValueError, OverflowError) as error:  # lists of unequal length
            texts = types.get(name) == "BYTES"
            rule = f"must be a regular list of {'texts' if texts else 'numbers'}"
            raise ValueError(f"{name} {rule}, got {short(values)}") from error
        arrays[name] = as_type_needs(array, types.get(name))
    return arrays


def _from_npz(path: Path, expected: Expected, count: int | None) -> list[Arrays]:
    arrays = from_npz(path, _MOST_UNPACKED)
    rows = count or max((len(each) for each in arrays.values() if each.ndim), default=1)
    refuse(str(path), mistakes_of(arrays, max(rows, 1), expected))
    return [{name: arrays[name][n : n + 1] for name in arrays} for n in range(rows)]


def _from_directory(path: Path, expected: Expected, count: int | None) -> list[Arrays]:
    if len(expected.tensors) != 1:
        names = ", ".join(spec.name for spec in expected.tensors)
        raise UnreadableError(f"a directory has the values of one input, and not of {names}")
    [spec] = expected.tensors
    rows = [(file.name, file) for file in islice(_files(path), count)]

    def to_arrays(file: Path, _: object) -> Arrays:
        content = read_bytes(file, _MOST_BYTES)
        if spec.data_type != "BYTES":
            try:
                return {spec.name: from_bytes(content, spec, None)[None]}
            except ValueError as error:
                raise ValueError(f"{spec.name} {error}") from error
        element = np.empty(1, dtype=np.object_)
        element[0] = content
        shape = spec.sized(dict.fromkeys(spec.free, 1))
        if any(size != 1 for size in shape):
            rule = "must have the size 1 in every axis to be filled from one file"
            raise ValueError(f"{spec.name} {rule}, got {list(spec.shape)}")
        return {spec.name: element.reshape((1, *shape))}

    return _checked(rows, to_arrays, expected, count, str(path))


def _files(directory: Path) -> Iterator[Path]:
    """Yield the files of a directory by name, without hidden ones."""
    try:
        listed = sorted(each for each in directory.iterdir() if not each.name.startswith("."))
    except OSError as error:
        raise UnreadableError(f"must be readable ({error.strerror})") from error
    for each in listed:
        if not each.is_file():
            raise UnreadableError(f"must contain only files, got {each.name!r}")
        yield each

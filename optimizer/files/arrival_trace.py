"""Recorded arrivals, read from a CSV file with the times of requests."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from textwrap import shorten

from optimizer.files.untrusted import csv_rows, read_text
from optimizer.workload.arrivals import ArrivalTrace


def _instant(text: str) -> float:
    """Return the seconds since 1970 of an ISO 8601 time, by default in UTC."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


_COLUMNS: Mapping[str, tuple[Callable[[str], float], str]] = {
    "seconds": (float, "must be a finite number"),
    "timestamp": (_instant, "must be an ISO 8601 time"),
}
"""Columns that may hold the times, their readers, and the rule for their values."""

MAX_SECONDS = 1e11
"""Largest distance of a time from 1970, about 3,000 years."""


def read_trace(path: Path, keys: str | None = None) -> ArrivalTrace:
    """Read the column `seconds` (numbers) or `timestamp` (ISO 8601) of a CSV file with a header.

    Rows may have any order and times any origin. The recording lasts from the first arrival to one
    mean interval after the last.

    Args:
        keys: column whose text is the same for requests of equal content; None for no such column.

    Raises:
        ValueError: names the rule, and the line and value that break it.
    """
    text = read_text(path)
    table = csv_rows(text)
    column = time_column(table.names)
    if keys is not None and keys not in table.names:
        got = shorten(str(list(table.names)), 200, placeholder="...")
        raise ValueError(f"must have a column {keys!r} in its first line, got {got}")
    read = (
        (read_time(column, line, row[column]), row[keys] if keys is not None else "")
        for line, row in table.rows
    )
    arrivals = sorted(read, key=lambda arrival: arrival[0])
    times = [at for at, _ in arrivals]
    if len(times) < 2:
        raise ValueError(f"must contain at least 2 arrivals, got {len(times)}")
    first, last, count = times[0], times[-1], len(times)
    if last == first:
        raise ValueError(f"must contain arrivals at different times, all {count} are at {first:g}")
    return ArrivalTrace(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        at_seconds=tuple(at - first for at in times),
        seconds=(last - first) * count / (count - 1),
        keys=_numbers([key for _, key in arrivals]) if keys is not None else (),
    )


def _numbers(keys: Sequence[str]) -> tuple[int, ...]:
    """Return the number of each key in the order of first appearance."""
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


def time_column(names: Sequence[str]) -> str:
    """Return the column that holds times. Raises ValueError without one."""
    column = next((name for name in _COLUMNS if name in names), None)
    if column is None:
        named = " or ".join(_COLUMNS)
        got = shorten(str(list(names)), 200, placeholder="...")
        raise ValueError(f"must have a column {named} in its first line, got {got}")
    return column


def read_time(column: str, line: int, value: str) -> float:
    """Return a time in seconds. Raises ValueError, naming line, column, rule and value."""
    read, rule = _COLUMNS[column]
    try:
        at = read(value.strip())
    except (ValueError, OverflowError):
        at = math.nan
    if not abs(at) <= MAX_SECONDS:
        got = shorten(repr(value), 80, placeholder="...")
        raise ValueError(f"line {line}: {column} {rule}, got {got}")
    return at

"""Recorded arrivals, read from a CSV file of the times at which requests came."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from optimizer.workload import ArrivalTrace


def _instant(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 time; one without a zone is taken as UTC."""
    at = datetime.fromisoformat(text)
    return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()


_COLUMNS: Mapping[str, tuple[Callable[[str], float], str]] = {
    "seconds": (float, "must be a finite number"),
    "timestamp": (_instant, "must be an ISO 8601 time"),
}
"""Columns that hold arrivals, how they are read, and the rule for each of their values."""


def read_trace(path: Path) -> ArrivalTrace:
    """Read the column `seconds` (numbers) or `timestamp` (ISO 8601) of a CSV file with a header.

    Rows need no order and times no origin. The recording lasts from the first arrival to one mean
    gap after the last.

    Raises:
        ValueError: when the file cannot be read or does not hold a recording; names the rule, and
            the line and value that break it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"must be a readable UTF-8 file ({error})") from error
    times = sorted(_times(text))
    first, last, count = times[0], times[-1], len(times)
    if last == first:
        raise ValueError(f"must hold arrivals at different times, all {count} are at {first:g}")
    return ArrivalTrace(
        sha256=hashlib.sha256(text.encode()).hexdigest(),
        at_seconds=tuple(at - first for at in times),
        seconds=(last - first) * count / (count - 1),
    )


def _times(text: str) -> list[float]:
    rows = csv.DictReader(text.splitlines())
    names = rows.fieldnames or ()
    column = next((name for name in _COLUMNS if name in names), None)
    if column is None:
        named = " or ".join(_COLUMNS)
        raise ValueError(f"must have a column {named} in its first line, got {list(names)}")
    read, rule = _COLUMNS[column]
    times = []
    for row in rows:
        value = row[column]
        try:
            at = read((value or "").strip())
        except ValueError:
            at = math.nan
        if not math.isfinite(at):
            raise ValueError(f"line {rows.line_num}: {column} {rule}, got {value!r}")
        times.append(at)
    if len(times) < 2:
        raise ValueError(f"must hold at least 2 arrivals, got {len(times)}")
    return times

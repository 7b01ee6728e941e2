"""A demand over time, read from a CSV file of rates or of arrivals."""

from __future__ import annotations

import math
from pathlib import Path
from textwrap import shorten

import numpy as np

from optimizer.errors import UsageError
from optimizer.files.arrival_trace import read_time, read_trace, time_column
from optimizer.files.untrusted import csv_rows, read_text
from optimizer.fleet.planning.demand_curve import (
    DAY_SECONDS,
    DemandCurve,
    curve_from_arrivals,
    curve_from_samples,
)

_RATE = "requests_per_second"
MAX_RATE = 1e7
"""Highest rate in requests/s; no planned fleet serves more."""

_MAX_DAYS = 31
"""Longest demand: the plan covers every step of it."""


def read_demand(path: Path, peak: float | None = None) -> DemandCurve:
    """Read a column `seconds` or `timestamp` (ISO 8601), and the column `requests_per_second`.

    Without the second column every row is one arrival.

    Args:
        peak: rate that the highest one is scaled to; None for the recorded rates.

    Raises:
        UsageError: naming the file, line, rule and value.
    """
    try:
        curve = _read(path)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if peak is None:
        return curve
    scale = peak / curve.peak
    return DemandCurve(
        f"{curve.name}, scaled to a peak of {peak:g}/s",
        tuple(rate * scale for rate in curve.per_second),
        curve.step_seconds,
    )


def _read(path: Path) -> DemandCurve:
    table = csv_rows(read_text(path))
    name = f"recorded, {path.name}"
    if _RATE not in table.names:
        trace = read_trace(path)
        _refuse_too_long(trace.seconds)
        return curve_from_arrivals(name, np.array(trace.at_seconds), trace.seconds)
    column = time_column(table.names)
    times: list[float] = []
    rates: list[float] = []
    for line, row in table.rows:
        times.append(read_time(column, line, row[column]))
        rates.append(_rate(line, row[_RATE]))
        if times[1:] and not times[-1] > times[-2]:
            elapsed = times[-1] - times[0]
            raise ValueError(f"line {line}: times must ascend, got {elapsed:g} s after the start")
    if len(times) < 2:
        raise ValueError(f"must contain at least 2 rates, got {len(times)}")
    if not any(rates):
        raise ValueError(f"{_RATE} must be above 0 in at least one row")
    _refuse_too_long(times[-1] - times[0])
    return curve_from_samples(name, np.array(times) - times[0], np.array(rates))


def _rate(line: int, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= MAX_RATE:
        got = shorten(repr(text), 80, placeholder="...")
        raise ValueError(f"line {line}: {_RATE} must be a number from 0 to {MAX_RATE:g}, got {got}")
    return rate


def _refuse_too_long(seconds: float) -> None:
    if seconds > _MAX_DAYS * DAY_SECONDS:
        days = seconds / DAY_SECONDS
        raise ValueError(f"must last at most {_MAX_DAYS} days, got {days:,.0f}")

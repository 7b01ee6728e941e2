"""A demand over time, read from a CSV file: rates, or the arrivals themselves."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from optimizer.arrival_trace import read_trace
from optimizer.errors import UsageError
from optimizer.fleet.planning.demand_curve import DemandCurve, of_arrivals, of_samples

_RATE = "requests_per_second"


def read_demand(path: Path, peak: float | None = None) -> DemandCurve:
    """Read a column `seconds` or `timestamp` (ISO 8601), and `requests_per_second` beside it.

    Without the second column every row is one arrival, and they are counted.

    Args:
        peak: rate that the busiest step is scaled to; as recorded where None.

    Raises:
        UsageError: naming the file, the rule, and the line and value that break it.
    """
    try:
        curve = _read(path)
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if peak is None:
        return curve
    scale = peak / curve.peak
    return DemandCurve(
        f"{curve.name}, scaled to {peak:g}/s at most",
        tuple(rate * scale for rate in curve.per_second),
        curve.step_seconds,
    )


def _read(path: Path) -> DemandCurve:
    try:
        table = pd.read_csv(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"must be a readable CSV file ({error})") from error
    name = f"recorded, {path.name}"
    if _RATE not in table.columns:
        trace = read_trace(path)
        return of_arrivals(name, np.array(trace.at_seconds), trace.seconds)
    rates = pd.to_numeric(table[_RATE], errors="coerce").to_numpy(dtype=np.float64)
    times = _times(table)
    if len(times) < 2:
        raise ValueError(f"must hold at least 2 rates, got {len(times)}")
    for line, (at, rate) in enumerate(zip(times, rates, strict=True), 2):
        if not 0 <= rate < math.inf:
            got = table[_RATE][line - 2]
            raise ValueError(f"line {line}: {_RATE} must be a number of at least 0, got {got!r}")
        if line > 2 and not at > times[line - 3]:
            raise ValueError(f"line {line}: times must ascend, got {at:g} s after the start")
    if not rates.any():
        raise ValueError(f"{_RATE} must be above 0 somewhere")
    return of_samples(name, times, rates)


def _times(table: pd.DataFrame) -> NDArray[np.float64]:
    """Seconds since the first row, shape [rows]; NaN for what is no time."""
    if "seconds" in table.columns:
        times = pd.to_numeric(table["seconds"], errors="coerce").to_numpy(dtype=np.float64)
    elif "timestamp" in table.columns:
        parsed = pd.to_datetime(table["timestamp"], errors="coerce", utc=True, format="ISO8601")
        times = (parsed - parsed.iloc[:1].min()).dt.total_seconds().to_numpy(dtype=np.float64)
    else:
        raise ValueError(f"must have a column seconds or timestamp, got {list(table.columns)}")
    for line, at in enumerate(times, 2):
        if not math.isfinite(at):
            raise ValueError(f"line {line}: must have a time")
    since_first: NDArray[np.float64] = times - times[:1]
    return since_first

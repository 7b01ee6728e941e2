"""The demand on a fleet over time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

DAY_SECONDS = 86_400.0
STEP_SECONDS = 300.0


@dataclass(frozen=True)
class DemandCurve:
    """Request rates in equal steps of time, which repeat after the last.

    Attributes:
        name: kind of demand, for people.
        per_second: mean rate of each step, at least one above 0.
    """

    name: str
    per_second: tuple[float, ...]
    step_seconds: float = STEP_SECONDS

    @property
    def seconds(self) -> float:
        """Duration of all steps."""
        return self.step_seconds * len(self.per_second)

    @property
    def peak(self) -> float:
        """Highest rate."""
        return max(self.per_second)

    @property
    def rates(self) -> NDArray[np.float64]:
        """`per_second` as an array of shape [steps]."""
        return np.array(self.per_second)

    def at(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rates at given times, interpolated between the middles of the steps."""
        middles = (np.arange(len(self.per_second)) + 0.5) * self.step_seconds
        return np.interp(seconds, middles, self.rates, period=self.seconds)


def constant_demand(per_second: float) -> DemandCurve:
    """Return a constant demand."""
    steps = round(DAY_SECONDS / STEP_SECONDS)
    return DemandCurve(f"constant, {per_second:g}/s", (per_second,) * steps)


def daily_demand(peak: float, trough: float, peak_hour: float = 14.0) -> DemandCurve:
    """Return a sine over 24 hours between trough and peak, with the peak at `peak_hour`.

    Raises:
        ValueError: unless 0 <= trough <= peak.
    """
    if not 0 <= trough <= peak:
        raise ValueError(f"the trough must be from 0 to the peak of {peak:g}, got {trough:g}")
    steps = round(DAY_SECONDS / STEP_SECONDS)
    hours = [step * STEP_SECONDS / 3600 for step in range(steps)]
    swing = [(1 + math.cos(2 * math.pi * (hour - peak_hour) / 24)) / 2 for hour in hours]
    rates = tuple(trough + (peak - trough) * share for share in swing)
    return DemandCurve(f"daily, {trough:g} to {peak:g}/s, peak at {peak_hour:g} h", rates)


def curve_from_samples(
    name: str, at_seconds: NDArray[np.float64], per_second: NDArray[np.float64]
) -> DemandCurve:
    """Return a curve of rates that hold until the next sample, the last for a mean interval.

    Args:
        at_seconds: ascending, shape [samples], at least two.
        per_second: shape [samples].
    """
    ends = np.append(at_seconds, at_seconds[-1] + np.diff(at_seconds).mean()) - at_seconds[0]
    requests = np.concatenate([[0.0], np.cumsum(per_second * np.diff(ends))])
    edges = _edges(float(ends[-1]))
    counted = np.diff(np.interp(edges, ends, requests))
    return DemandCurve(name, tuple((counted / np.diff(edges)).tolist()), float(edges[1]))


def curve_from_arrivals(name: str, at_seconds: NDArray[np.float64], seconds: float) -> DemandCurve:
    """Return a curve of recorded arrivals, counted per step.

    Args:
        at_seconds: in [0, `seconds`), shape [arrivals].
    """
    edges = _edges(seconds)
    counts, _ = np.histogram(at_seconds, edges)
    return DemandCurve(name, tuple((counts / np.diff(edges)).tolist()), float(edges[1]))


def _edges(seconds: float) -> NDArray[np.float64]:
    """Return the boundaries of equal steps of about `STEP_SECONDS`, from 0."""
    steps = max(1, round(seconds / STEP_SECONDS))
    return np.linspace(0.0, seconds, steps + 1)

"""Arrival processes: when requests are due, whether or not earlier ones were answered. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from optimizer.workload.streams import ArrivalPattern, ArrivalTrace


class Arrivals(Protocol):
    """An arrival process."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the times at which requests are due.

        Returns:
            Seconds since the start, ascending, each in [0, `duration_seconds`); shape [n], n on
            average `rate_per_second` x `duration_seconds`.
        """
        ...


@dataclass(frozen=True)
class PoissonArrivals:
    """Independent arrivals at a constant mean rate, as from many independent users."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw independent uniform times, as Poisson arrivals are given their number."""
        count = rng.poisson(rate_per_second * duration_seconds)
        return np.sort(rng.random(count)) * duration_seconds


@dataclass(frozen=True)
class ConstantArrivals:
    """One arrival every 1 / rate seconds, the first at a random time in the first interval."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the first time; the others follow at equal intervals."""
        first = rng.random() / rate_per_second
        count = int(np.ceil((duration_seconds - first) * rate_per_second))
        due = first + np.arange(max(count, 0)) / rate_per_second
        return due[due < duration_seconds]


@dataclass(frozen=True)
class TraceArrivals:
    """Recorded arrivals, scaled in time to the offered mean rate.

    They begin at a random time of the recording, so that short levels cover all of it in turn, and
    start over at its end. Bursts keep their shape, but not their duration in seconds.
    """

    trace: ArrivalTrace

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the start in the recording; the rate is met on average over starts."""
        at = np.asarray(self.trace.at_seconds, dtype=np.float64)
        speed = rate_per_second * self.trace.seconds / len(at)
        begin = rng.random() * self.trace.seconds
        end = begin + duration_seconds * speed
        rounds = np.arange(np.ceil(end / self.trace.seconds)) * self.trace.seconds
        looped = (rounds[:, None] + at).ravel()
        due: NDArray[np.float64] = (looped[(looped >= begin) & (looped < end)] - begin) / speed
        return due[due < duration_seconds]


_NAMED: dict[str, Arrivals] = {"poisson": PoissonArrivals(), "constant": ConstantArrivals()}


def arrivals_of(pattern: ArrivalPattern) -> Arrivals:
    """Return the arrival process of a stream's pattern."""
    return TraceArrivals(pattern) if isinstance(pattern, ArrivalTrace) else _NAMED[pattern]

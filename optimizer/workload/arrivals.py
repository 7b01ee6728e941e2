"""When requests are due. Open loop: the times never depend on replies."""

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
    """Independent arrivals at a steady mean rate, as from many users who do not know each other."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """See `Arrivals`. Given their number, Poisson arrivals are uniform and independent."""
        count = rng.poisson(rate_per_second * duration_seconds)
        return np.sort(rng.random(count)) * duration_seconds


@dataclass(frozen=True)
class ConstantArrivals:
    """One arrival every 1 / rate seconds, the first at a random moment of the first of them."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """See `Arrivals`."""
        first = rng.random() / rate_per_second
        count = int(np.ceil((duration_seconds - first) * rate_per_second))
        due = first + np.arange(max(count, 0)) / rate_per_second
        return due[due < duration_seconds]


@dataclass(frozen=True)
class TraceArrivals:
    """Recorded arrivals, run faster or slower so that their mean rate is the rate asked for.

    Begins at a random moment of the recording, so that short levels see all of it in turn, and
    starts over where the recording ends. Its bursts keep their shape, not their length in seconds.
    """

    trace: ArrivalTrace

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """See `Arrivals`. n is that of the stretch of the recording; on average over beginnings."""
        at = np.asarray(self.trace.at_seconds, dtype=np.float64)
        pace = rate_per_second * self.trace.seconds / len(at)
        begin = rng.random() * self.trace.seconds
        end = begin + duration_seconds * pace
        rounds = np.arange(np.ceil(end / self.trace.seconds)) * self.trace.seconds
        looped = (rounds[:, None] + at).ravel()
        due: NDArray[np.float64] = (looped[(looped >= begin) & (looped < end)] - begin) / pace
        return due[due < duration_seconds]


_NAMED: dict[str, Arrivals] = {"poisson": PoissonArrivals(), "constant": ConstantArrivals()}


def arrivals_of(pattern: ArrivalPattern) -> Arrivals:
    """The arrival process that a stream's pattern stands for."""
    return TraceArrivals(pattern) if isinstance(pattern, ArrivalTrace) else _NAMED[pattern]

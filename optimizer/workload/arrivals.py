"""Arrival processes of an open loop: when requests are due, independently of replies.

A new named process is a class here, its name in `ArrivalName` and its entry in `_BY_NAME`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


class Arrivals(Protocol):
    """An arrival process.

    Example:
        due = PoissonArrivals().due_seconds(200.0, 10.0, np.random.default_rng(1))
    """

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
    """Independent arrivals at a steady mean rate, as from many independent users."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw their number, and then uniform and independent times."""
        count = rng.poisson(rate_per_second * duration_seconds)
        return np.sort(rng.random(count)) * duration_seconds


@dataclass(frozen=True)
class ConstantArrivals:
    """One arrival every 1 / rate seconds, the first at a random moment of the first interval."""

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the first time; the others follow from it."""
        first = rng.random() / rate_per_second
        count = int(np.ceil((duration_seconds - first) * rate_per_second))
        due = first + np.arange(max(count, 0)) / rate_per_second
        return due[due < duration_seconds]


@dataclass(frozen=True)
class ArrivalTrace:
    """Recorded arrivals.

    Attributes:
        sha256: of the file that it was read from.
        at_seconds: arrival times since the start of the recording, ascending.
        seconds: length of the recording; above the last arrival.
        keys: number of each request's content, which are 0, 1, ... in the order of their first
            arrivals; empty where the recording does not tell.
    """

    sha256: str
    at_seconds: tuple[float, ...]
    seconds: float
    keys: tuple[int, ...] = ()


@dataclass(frozen=True)
class TraceArrivals:
    """Recorded arrivals, scaled in time so that their mean rate is the given one.

    The times begin at a random moment of the recording, so that short levels cover all of it in
    turn, and start over where the recording ends. Bursts keep their shape, not their length.
    """

    trace: ArrivalTrace

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw the beginning; n is exact only on average over all beginnings."""
        recorded = np.asarray(self.trace.at_seconds, dtype=np.float64)
        scale = rate_per_second * self.trace.seconds / len(recorded)
        begin = rng.random() * self.trace.seconds
        end = begin + duration_seconds * scale
        rounds = np.arange(np.ceil(end / self.trace.seconds)) * self.trace.seconds
        looped = (rounds[:, None] + recorded).ravel()
        due: NDArray[np.float64] = (looped[(looped >= begin) & (looped < end)] - begin) / scale
        return due[due < duration_seconds]


ArrivalName = Literal["poisson", "constant"]
ArrivalPattern = ArrivalName | ArrivalTrace

_BY_NAME: dict[ArrivalName, Arrivals] = {
    "poisson": PoissonArrivals(),
    "constant": ConstantArrivals(),
}


def arrivals_of(pattern: ArrivalPattern) -> Arrivals:
    """Return the arrival process of a stream's pattern."""
    return TraceArrivals(pattern) if isinstance(pattern, ArrivalTrace) else _BY_NAME[pattern]

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


@dataclass(frozen=True)
class Bursts:
    """A rate that alternates: a burst at the beginning of each period, and a quiet time.

    Attributes:
        times_mean: rate during a burst, relative to the mean rate; above 1.
        burst_seconds, period_seconds: lengths; the quiet rate, at least 0, follows from the mean.
        begin_seconds: time since the beginning of a period at which a level begins; drawn at random
            where it is None, so that short levels cover all of a period in turn.
    """

    times_mean: float
    burst_seconds: float
    period_seconds: float
    begin_seconds: float | None = None

    def begin(self, rng: np.random.Generator) -> float:
        """Return `begin_seconds`, or draw it."""
        if self.begin_seconds is not None:
            return self.begin_seconds
        return float(rng.random()) * self.period_seconds

    @property
    def quiet_times_mean(self) -> float:
        """Rate between bursts, relative to the mean rate."""
        in_burst = self.times_mean * self.burst_seconds
        return max(0.0, self.period_seconds - in_burst) / (self.period_seconds - self.burst_seconds)

    def steady_seconds(self, at_seconds: float) -> float:
        """Return when the mean rate has as many arrivals as there are until `at_seconds`."""
        periods, within = divmod(at_seconds, self.period_seconds)
        burst = min(within, self.burst_seconds)
        own = self.times_mean * burst + self.quiet_times_mean * (within - burst)
        return periods * self.period_seconds + own

    def shifted(
        self, steady_seconds: NDArray[np.float64], begin_seconds: float
    ) -> NDArray[np.float64]:
        """Return when arrivals at a steady rate come in bursts of the same mean rate.

        Args:
            steady_seconds: ascending from 0, shape [n].
            begin_seconds: time since the beginning of a period at which they begin.

        Returns:
            Seconds since the beginning, ascending; shape [n].
        """
        steady = steady_seconds + self.steady_seconds(begin_seconds)
        periods = np.floor(steady / self.period_seconds)
        within = steady - periods * self.period_seconds
        in_burst = np.minimum(within, self.times_mean * self.burst_seconds)
        quiet_seconds = (within - in_burst) / max(self.quiet_times_mean, _LEAST_QUIET)
        seconds = periods * self.period_seconds + in_burst / self.times_mean + quiet_seconds
        return np.asarray(np.maximum(seconds - begin_seconds, 0.0))


_LEAST_QUIET = 1e-12


@dataclass(frozen=True)
class BurstArrivals:
    """Independent arrivals at the alternating rate of `Bursts`."""

    bursts: Bursts

    def due_seconds(
        self, rate_per_second: float, duration_seconds: float, rng: np.random.Generator
    ) -> NDArray[np.float64]:
        """Draw at a steady rate, then shift; n has its mean only over whole periods."""
        bursts, begin = self.bursts, self.bursts.begin(rng)
        steady = bursts.steady_seconds(begin + duration_seconds) - bursts.steady_seconds(begin)
        due = bursts.shifted(PoissonArrivals().due_seconds(rate_per_second, steady, rng), begin)
        return due[due < duration_seconds]


ArrivalName = Literal["poisson", "constant"]
ArrivalPattern = ArrivalName | ArrivalTrace | Bursts

_BY_NAME: dict[ArrivalName, Arrivals] = {
    "poisson": PoissonArrivals(),
    "constant": ConstantArrivals(),
}


def arrivals_of(pattern: ArrivalPattern) -> Arrivals:
    """Return the arrival process of a stream's pattern."""
    if isinstance(pattern, Bursts):
        return BurstArrivals(pattern)
    return TraceArrivals(pattern) if isinstance(pattern, ArrivalTrace) else _BY_NAME[pattern]

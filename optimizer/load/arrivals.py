"""When requests are due. Open loop: the times never depend on replies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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


ARRIVALS: dict[str, Arrivals] = {"poisson": PoissonArrivals()}
"""Arrival processes by the name that a stream gives."""

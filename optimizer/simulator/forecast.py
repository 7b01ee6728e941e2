"""What the simulator expects of every point of a search space. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Forecast:
    """Expectations, arrays of shape [points] in the order of `SearchSpace.points`.

    Attributes:
        saturation: load factor under saturation.
        capacity: largest load factor within the limits; 0 where even the floor load misses them.
        floor_log_excess: logarithm of the latency at the limit's percentile over the limit at the
            floor load (largest over the streams); <= 0 is feasible.
        log_sd: standard deviation of the logarithm of saturation and capacity, by what is not
            known of the service times.
    """

    saturation: NDArray[np.float64]
    capacity: NDArray[np.float64]
    floor_log_excess: NDArray[np.float64]
    log_sd: NDArray[np.float64]

    def at(self, row: int) -> Forecast:
        """Of one point alone."""
        own = slice(row, row + 1)
        return Forecast(
            self.saturation[own], self.capacity[own], self.floor_log_excess[own], self.log_sd[own]
        )

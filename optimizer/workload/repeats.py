"""Traffic in which requests repeat: how popular each of a population of requests is. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class ZipfRepeats:
    """A population of requests whose popularity follows Zipf's law.

    The request of rank k, from 1, is sent with a probability proportional to k ** -exponent,
    independently of the requests before it.

    Attributes:
        exponent: 0 makes all requests equally popular.
        population: number of different requests.
    """

    exponent: float
    population: int

    def probabilities(self) -> NDArray[np.float64]:
        """Return the probability of each request, most popular first; shape [population]."""
        weights = np.arange(1, self.population + 1, dtype=np.float64) ** -self.exponent
        probabilities: NDArray[np.float64] = weights / weights.sum()
        return probabilities

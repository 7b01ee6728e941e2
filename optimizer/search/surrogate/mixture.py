"""What several fits say of the same points, and all of them together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_LEAST_VARIANCE = 1e-12

_NEGLIGIBLE = 0.002
"""Posterior probability of a fit that is left out."""


@dataclass(frozen=True)
class Prediction:
    """Mean and variance of some points' residuals by one fit, without noise, [points].

    Attributes:
        explained: its squares sum up to the variance that the observations took away,
            [observations, points].
    """

    mean: Array
    variance: Array
    explained: Array


@dataclass(frozen=True)
class Mixture:
    """Means and standard deviations of the same points by several fits, with their weights."""

    weights: Sequence[float]
    means: Sequence[Array]
    sds: Sequence[Array]

    @classmethod
    def of(
        cls, weights: Sequence[float], means: Sequence[Array], variances: Sequence[Array]
    ) -> Self:
        """Return the mixture of fits by their variances, which rounding may have made negative."""
        sds = [np.sqrt(np.maximum(variance, _LEAST_VARIANCE)) for variance in variances]
        return cls(weights, means, sds)

    @property
    def moments(self) -> tuple[Array, Array]:
        """Mean and standard deviation of all fits together."""
        mean = self.expectation(lambda mean, _: mean)
        squares = self.expectation(lambda mean, sd: mean**2 + sd**2)
        return mean, np.sqrt(np.maximum(squares - mean**2, _LEAST_VARIANCE))

    def expectation(self, of: Callable[[Array, Array], Array]) -> Array:
        """Return the expectation of a function of mean and standard deviation, [points]."""
        fits = zip(self.weights, self.means, self.sds, strict=True)
        return cast(Array, sum(weight * of(mean, sd) for weight, mean, sd in fits))


def probable(logs: Sequence[float]) -> tuple[NDArray[np.int64], tuple[float, ...]]:
    """Return the indices of what is not negligible, and its probabilities, by their logarithms."""
    weights = np.exp(np.array(logs) - max(logs))
    weights /= weights.sum()
    kept = np.flatnonzero(weights >= _NEGLIGIBLE)
    return kept, tuple((weights[kept] / weights[kept].sum()).tolist())

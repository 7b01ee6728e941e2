"""Effects of parameters on the cost, over all points of a space.

The variance of the logarithm of the cost is divided among parameters and pairs of them, as a
functional analysis of variance does; logarithms, because what multiplies a cost adds to them.
Points need not be a whole grid: parameters that are not independent of each other share what they
explain, and their shares may add up to more than one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

_LEAST_SHARE = 0.005

_NOTHING = 1e-12
"""Variance of a logarithm that is no more than rounding."""


@dataclass(frozen=True)
class LevelEffect:
    """One value of a parameter.

    Attributes:
        mean_usd_per_million: geometric mean over the points that have it.
        least_usd_per_million: of the cheapest of these.
        points: how many have it.
    """

    value: str
    mean_usd_per_million: float
    least_usd_per_million: float
    points: int


@dataclass(frozen=True)
class Effect:
    """A parameter.

    Attributes:
        share: of the variance that its values alone explain, 0 to 1.
        levels: in the parameter's own order.
    """

    parameter: str
    share: float
    levels: tuple[LevelEffect, ...]

    @property
    def best(self) -> LevelEffect:
        """The value with the lowest mean cost."""
        return min(self.levels, key=lambda level: level.mean_usd_per_million)


@dataclass(frozen=True)
class Interaction:
    """Two parameters.

    Attributes:
        share: of the variance that their values explain together and not one by one, 0 to 1.
    """

    parameters: tuple[str, str]
    share: float


@dataclass(frozen=True)
class Effects:
    """What matters, each sorted from the largest share.

    Attributes:
        main: of every parameter that has more than one value among the points.
        interactions: of pairs that explain at least half a per cent.
        points: how many they are drawn from.
    """

    main: tuple[Effect, ...]
    interactions: tuple[Interaction, ...]
    points: int


def effects_of(
    parameters: Sequence[tuple[str, Sequence[str]]],
    points: NDArray[np.int64],
    log_cost: NDArray[np.float64],
) -> Effects:
    """Divide the variance of the cost.

    Args:
        parameters: names, and what their values are called.
        points: positions of the values, shape [points, parameters].
        log_cost: logarithm of dollars per million, shape [points].
    """
    columns = {
        name: (points[:, at], values)
        for at, (name, values) in enumerate(parameters)
        if len(np.unique(points[:, at])) > 1
    }
    total = float(((log_cost - log_cost.mean()) ** 2).sum()) if len(log_cost) else 0.0
    if total <= _NOTHING * len(log_cost):
        return Effects((), (), len(log_cost))
    main = [
        Effect(name, _explained([column], log_cost) / total, _levels(column, values, log_cost))
        for name, (column, values) in columns.items()
    ]
    pairs = [
        Interaction(pair, _together(columns[pair[0]][0], columns[pair[1]][0], log_cost) / total)
        for pair in combinations(columns, 2)
    ]
    return Effects(
        tuple(sorted(main, key=lambda effect: -effect.share)),
        tuple(sorted((p for p in pairs if p.share >= _LEAST_SHARE), key=lambda pair: -pair.share)),
        len(log_cost),
    )


def _levels(
    column: NDArray[np.int64], values: Sequence[str], log_cost: NDArray[np.float64]
) -> tuple[LevelEffect, ...]:
    effects = []
    for at in np.unique(column):
        own = log_cost[column == at]
        mean, least = math.exp(own.mean()), math.exp(own.min())
        effects.append(LevelEffect(values[int(at)], mean, least, len(own)))
    return tuple(effects)


def _explained(columns: Sequence[NDArray[np.int64]], log_cost: NDArray[np.float64]) -> float:
    """Sum of squares that values explain one by one, by least squares on their indicators."""
    indicators = np.hstack([column[:, None] == np.unique(column) for column in columns])
    centred = log_cost - log_cost.mean()
    fitted = indicators @ np.linalg.lstsq(indicators.astype(float), centred, rcond=None)[0]
    return float((fitted**2).sum())


def _together(
    one: NDArray[np.int64], other: NDArray[np.int64], log_cost: NDArray[np.float64]
) -> float:
    """Sum of squares that combinations of two values explain beyond the values themselves."""
    cells = one * (int(other.max()) + 1) + other
    return max(0.0, _explained([cells], log_cost) - _explained([one, other], log_cost))

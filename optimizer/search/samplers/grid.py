"""Every valid point once, in an order that the seed gives."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.search.samplers.points import PointSampler, RequestedPoint


class GridSampler(PointSampler):
    """Walks the valid points; Optuna's own walks every combination, valid or not.

    Args:
        order_seed: of the order, the same throughout a study.
    """

    def __init__(self, space: SearchSpace, order_seed: int, seed: int) -> None:
        super().__init__(space, seed)
        self._points = space
        self._order_seed = order_seed

    def choose(self, asked: Sequence[RequestedPoint]) -> Position | None:
        """The first point in the order that no trial has had."""
        had = {point.position for point in asked}
        order = np.random.default_rng(self._order_seed).permutation(len(self._points))
        points = (self._points.at(int(row)) for row in order)
        return next((point for point in points if point not in had), None)

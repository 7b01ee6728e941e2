from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest

from optimizer.analysis.effects import effects_of

PARAMETERS = [("a", ["1", "2"]), ("b", ["x", "y", "z"]), ("c", ["on", "off"]), ("d", ["same"])]
GRID = np.array(list(product(range(2), range(3), range(2), range(1))))


def test_what_adds_to_the_logarithm_is_a_main_effect() -> None:
    log_cost = 2.0 * GRID[:, 0] + np.array([0.0, 0.5, 1.0])[GRID[:, 1]]
    found = effects_of(PARAMETERS, GRID, log_cost)
    assert [each.parameter for each in found.main] == ["a", "b", "c"], "d has one value"
    shares = [each.share for each in found.main]
    assert shares == pytest.approx([1.0 / (1.0 + 1 / 6), 1 / 6 / (1.0 + 1 / 6), 0.0])
    assert found.interactions == ()
    assert found.points == 12


def test_levels_have_their_mean_and_least_cost() -> None:
    log_cost = np.log(np.where(GRID[:, 0] == 0, 1.0, 4.0) * np.where(GRID[:, 2] == 0, 1.0, 4.0))
    [first, *_] = effects_of(PARAMETERS, GRID, log_cost).main
    one, two = first.levels
    assert one.value == "1"
    assert (one.mean_usd_per_million, one.least_usd_per_million) == pytest.approx((2.0, 1.0))
    assert (two.value, two.points) == ("2", 6)
    assert two.mean_usd_per_million == pytest.approx(8.0)
    assert first.best == one


def test_what_two_values_do_together_is_an_interaction() -> None:
    log_cost = np.where(GRID[:, 0] == GRID[:, 2], 1.0, -1.0)
    found = effects_of(PARAMETERS, GRID, log_cost)
    assert all(each.share == pytest.approx(0.0) for each in found.main)
    [pair] = found.interactions
    assert pair.parameters == ("a", "c")
    assert pair.share == pytest.approx(1.0)


def test_points_need_not_be_a_grid() -> None:
    rows = GRID[GRID[:, 0] + GRID[:, 1] > 0]
    log_cost = 1.0 * rows[:, 0] + 3.0 * rows[:, 2]
    found = effects_of(PARAMETERS, rows, log_cost)
    of = {each.parameter: each.share for each in found.main}
    assert of["c"] > of["a"] > of["b"]
    assert all(pair.share < 0.01 for pair in found.interactions)


def test_where_all_cost_the_same_nothing_matters() -> None:
    assert effects_of(PARAMETERS, GRID, np.full(12, math.log(3))).main == ()
    assert effects_of(PARAMETERS, GRID[:0], np.array([])).points == 0

"""The points of a space as Optuna parameters.

There is one distribution per parameter that has a choice: evenly spaced numbers as they are, other
numbers by their position in the list (the name ends in ".position"), everything else as a category.
A proposal is moved to the nearest valid point, so that Optuna models the cost of the point that was
measured for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from optimizer.configuration.model_space import Position
from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace


class OptunaSpace:
    """Translates between the points of a space and Optuna's parameters."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._searched = [(n, p) for n, p in enumerate(space.parameters) if len(p.values) > 1]
        self.distributions = {_name(p): _distribution(p) for _, p in self._searched}

    def params(self, position: Position) -> dict[str, int | str]:
        """Return a point as Optuna's parameters."""
        return {_name(p): _to_optuna(p, position[n]) for n, p in self._searched}

    def position(self, params: Mapping[str, object]) -> Position:
        """Return the valid point nearest to Optuna's parameters."""
        wanted = [0] * len(self._space.parameters)
        for n, parameter in self._searched:
            wanted[n] = _from_optuna(parameter, params[_name(parameter)])
        point = tuple(wanted)
        if point in self._space.row_of:
            return point
        nearest = self._space.nearest(point)
        assert nearest is not None, "nothing was excluded and a space is never empty"
        return nearest


def _even_step(parameter: Parameter) -> int | None:
    """Return the step between the values where it is constant, None otherwise."""
    if not parameter.ordinal:
        return None
    values = [int(v) for v in parameter.values if isinstance(v, int)]
    steps = {b - a for a, b in pairwise(values)}
    return steps.pop() if len(steps) == 1 else None


def _name(parameter: Parameter) -> str:
    by_position = parameter.ordinal and _even_step(parameter) is None
    return f"{parameter.key}.position" if by_position else parameter.key


def _distribution(parameter: Parameter) -> BaseDistribution:
    if (step := _even_step(parameter)) is not None:
        low, high = parameter.values[0], parameter.values[-1]
        return IntDistribution(int(low), int(high), step=step)  # type: ignore[arg-type]
    if parameter.ordinal:
        return IntDistribution(0, len(parameter.values) - 1)
    return CategoricalDistribution([label(v) for v in parameter.values])


def _to_optuna(parameter: Parameter, position: int) -> int | str:
    by_position = parameter.ordinal and _even_step(parameter) is None
    return position if by_position else label(parameter.values[position])


def _from_optuna(parameter: Parameter, value: object) -> int:
    if parameter.ordinal and _even_step(parameter) is None:
        assert isinstance(value, int)
        return value
    return [label(v) for v in parameter.values].index(value)  # type: ignore[arg-type]

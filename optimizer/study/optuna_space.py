"""The points of a space as Optuna parameters.

There is one distribution per parameter that has a choice: evenly spaced numbers as they are, other
numbers by their position in the list (the name ends in ".position"), everything else as a category.
A proposal is moved to the nearest valid point, so that Optuna models the cost of the point that was
measured for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution

from optimizer.configuration.model_space import Position
from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.parameter_definition import label
from optimizer.configuration.search_space import SearchSpace


@dataclass(frozen=True)
class _Column:
    """A parameter with a choice, as Optuna's.

    Attributes:
        index: in the parameters of the space.
        values: Optuna's value of each position.
        pairs: name and value of each position, the same object for all trials.
        positions: the position of each of Optuna's values.
    """

    index: int
    name: str
    distribution: BaseDistribution
    values: tuple[int | str, ...]
    pairs: tuple[tuple[str, int | str], ...]
    positions: Mapping[object, int]

    @classmethod
    def of(cls, index: int, parameter: Parameter) -> _Column:
        by_position = parameter.ordinal and _even_step(parameter) is None
        values: tuple[int | str, ...] = tuple(
            n if by_position else label(value) for n, value in enumerate(parameter.values)
        )
        name = f"{parameter.key}.position" if by_position else parameter.key
        positions: dict[object, int] = {value: n for n, value in enumerate(values)}
        pairs = tuple((name, value) for value in values)
        return cls(index, name, _distribution(parameter), values, pairs, positions)


class OptunaSpace:
    """Translates between the points of a space and Optuna's parameters."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        self._columns = [
            _Column.of(n, p) for n, p in enumerate(space.parameters) if len(p.values) > 1
        ]
        self.distributions = {column.name: column.distribution for column in self._columns}

    def params(self, position: Position) -> dict[str, int | str]:
        """Return a point as Optuna's parameters."""
        return {column.name: column.values[position[column.index]] for column in self._columns}

    def pairs(self, params: Mapping[str, object]) -> tuple[tuple[str, int | str], ...]:
        """Return Optuna's parameters as records keep them."""
        return tuple(
            column.pairs[column.positions[params[column.name]]] for column in self._columns
        )

    def position(self, params: Mapping[str, object]) -> Position:
        """Return the valid point nearest to Optuna's parameters."""
        point = self.combination(params)
        if point in self._space.row_of:
            return point
        nearest = self._space.nearest(point)
        assert nearest is not None, "nothing was excluded and a space is never empty"
        return nearest

    def combination(self, params: Mapping[str, object]) -> Position:
        """Return Optuna's parameters as a point, valid or not.

        Raises:
            KeyError: for parameters that are not the space's.
        """
        wanted = [0] * len(self._space.parameters)
        for column in self._columns:
            wanted[column.index] = column.positions[params[column.name]]
        return tuple(wanted)


def _even_step(parameter: Parameter) -> int | None:
    """Return the step between the values where it is constant, None otherwise."""
    if not parameter.ordinal:
        return None
    values = [int(v) for v in parameter.values if isinstance(v, int)]
    steps = {b - a for a, b in pairwise(values)}
    return steps.pop() if len(steps) == 1 else None


def _distribution(parameter: Parameter) -> BaseDistribution:
    if (step := _even_step(parameter)) is not None:
        low, high = parameter.values[0], parameter.values[-1]
        return IntDistribution(int(low), int(high), step=step)  # type: ignore[arg-type]
    if parameter.ordinal:
        return IntDistribution(0, len(parameter.values) - 1)
    return CategoricalDistribution([label(v) for v in parameter.values])

"""Models whose own parameters cannot matter, as another model of the same requests limits them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.search_space import SearchSpace
from optimizer.simulator.forecast import Forecast, Forecaster
from optimizer.simulator.service_model import ServiceModel

_MOST_UTILISATION = 0.6
"""Utilisation at saturation up to which a model cannot limit: forecasts are wrong by less."""

_WORTHLESS = 0.02
"""Share of the best forecast capacity that a model's own parameters may be worth at most."""


@dataclass(frozen=True)
class IdleModel:
    """A model that is left at the baseline.

    Attributes:
        utilisation: at saturation, in the best configuration that leaves it there.
    """

    model: str
    utilisation: float

    @property
    def text(self) -> str:
        """What is left alone, and why."""
        return (
            f"{self.model} at {self.utilisation:.0%} utilisation cannot limit; its parameters are "
            "left at the baseline"
        )


@dataclass(frozen=True)
class OpenRows:
    """The rows of a space that are searched.

    Attributes:
        rows: whether each point is among them, shape [points].
        idle: models that are at the baseline in all of them.
    """

    rows: NDArray[np.bool_]
    idle: tuple[IdleModel, ...]


def open_rows(space: SearchSpace, forecaster: Forecaster, service: ServiceModel) -> OpenRows:
    """Leave models at the baseline that can neither limit nor improve the best forecast.

    Models are looked at in turn, and each is judged beside those that are left alone already.

    Raises:
        KeyError: when a model of the space was never observed.
    """
    rows, idle = np.ones(len(space), dtype=bool), list[IdleModel]()
    if not forecaster.utilisations(service, space.row_of[space.baseline]):
        return OpenRows(rows, ())
    forecast = forecaster.forecast(service)
    for model, same in _at_baseline(space):
        fewer = rows & same
        if not fewer.any() or not (rows & ~same).any():
            continue
        best = _best(forecast, fewer)
        lost = 1 - forecast.capacity[best] / forecast.capacity[_best(forecast, rows)]
        utilisation = forecaster.utilisations(service, best).get(model, 0.0)
        certain = utilisation * np.exp(2 * forecast.log_sd[best]) <= 1
        if lost <= _WORTHLESS and utilisation <= _MOST_UTILISATION and certain:
            rows = fewer
            idle.append(IdleModel(model, utilisation))
    return OpenRows(rows, tuple(idle))


def _best(forecast: Forecast, rows: NDArray[np.bool_]) -> int:
    order = np.lexsort((forecast.saturation, forecast.capacity))
    return int(order[rows[order]][-1])


def _at_baseline(space: SearchSpace) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each model with searched parameters, and the points in which these are the baseline's.

    Points of another artefact than the baseline's are none of them.
    """
    baseline = np.array(space.baseline)
    for model, columns in space.columns():
        if any(len(parameter.values) > 1 for parameter in model.parameters):
            yield model.model, (space.points[:, columns] == baseline[columns]).all(axis=1)

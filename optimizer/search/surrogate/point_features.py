"""What the points of a space have in common, so that one measurement informs others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.named_parameters import Parameter
from optimizer.configuration.parameter_definition import Part
from optimizer.configuration.search_space import SearchSpace

Codes = NDArray[np.int64]
"""Shape [points]; equal codes mean points that agree."""


@dataclass(frozen=True)
class PointFeatures:
    """Arrays over the points of a space, in the order of `SearchSpace.points`.

    Attributes:
        artifacts: codes of runtime, precision, profile and padding of all models together.
        layouts: codes of instances, threads and the options around them.
        servers: codes of the server's own options.
        cells: codes of artefact, largest batch and layout; points of a cell differ in queueing
            only.
        log2_batch: log2 of the largest batch in units of one request, [points, models].
        coordinates: of every searched parameter, [points, searched]; numbers from 0 to 1,
            categories as codes.
        categorical: which of these are categories, [searched].
    """

    artifacts: Codes
    layouts: Codes
    servers: Codes
    cells: Codes
    log2_batch: NDArray[np.float64]
    coordinates: NDArray[np.float64]
    categorical: NDArray[np.bool_]

    @classmethod
    def of(cls, space: SearchSpace) -> PointFeatures:
        """Return the features of a space's points."""
        points, parameters = space.points, space.parameters
        artifacts = _codes(points[:, _changing(parameters, "artifact")])
        layouts = _codes(points[:, _changing(parameters, "layout", "server")])
        servers = _codes(points[:, _changing(parameters, "server")])
        log2_batch = np.column_stack(list(_log2_batches(space)))
        together = [artifacts, layouts, *(_codes(column[:, None]) for column in log2_batch.T)]
        searched = [n for n, parameter in enumerate(parameters) if len(parameter.values) > 1]
        categorical = np.array([not parameters[n].ordinal for n in searched], dtype=bool)
        coordinates = points[:, searched].astype(np.float64)
        for column, n in enumerate(searched):
            if parameters[n].ordinal:
                coordinates[:, column] /= len(parameters[n].values) - 1
        cells = _codes(np.column_stack(together))
        return cls(artifacts, layouts, servers, cells, log2_batch, coordinates, categorical)


def _changing(parameters: Sequence[Parameter], *parts: Part) -> list[int]:
    return [n for n, each in enumerate(parameters) if each.definition.part in parts]


def _codes(columns: NDArray[np.int64] | NDArray[np.float64]) -> Codes:
    if columns.shape[1] == 0:
        return np.zeros(len(columns), dtype=np.int64)
    _, codes = np.unique(columns, axis=0, return_inverse=True)
    return codes.reshape(-1).astype(np.int64)


def _log2_batches(space: SearchSpace) -> Iterator[NDArray[np.float64]]:
    """Yield the largest batch of each model, [points]; one request where nothing is batched."""
    alone = space.limits.request_size
    for model in dict.fromkeys(parameter.model for parameter in space.parameters):
        own = {p.name: (n, p) for n, p in enumerate(space.parameters) if p.model == model}
        (at_batch, largest), (at_batching, batching) = own["max_batch_size"], own["batching"]
        sizes = np.array([value for value in largest.values if isinstance(value, int)])
        on = np.array([bool(value) for value in batching.values])[space.points[:, at_batching]]
        chosen = np.where(on, sizes[space.points[:, at_batch]], alone)
        yield np.log2(chosen / alone)

"""The different saturated levels that the points of a space can show. Pure."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace
from optimizer.configuration.parameters import names_of
from optimizer.simulator.service_observation import ExecutionLayout, execution_layout

_OF_THE_QUEUE = names_of("queue")
"""Parameters that have no effect on how long a batch takes."""

_SIMULATED = {"batching", "max_batch_size", "preferred_batch_sizes", "max_queue_delay_us"}
if not_simulated := {*names_of("batcher", "queue")} - _SIMULATED:
    raise NotImplementedError(
        f"the simulated batcher (optimizer/simulator/batcher.py) ignores {sorted(not_simulated)}:"
        " simulate them and list them here, or give them another part in the table of parameters"
    )

_Ints = NDArray[np.int64]


def saturated_levels(
    space: ModelSpace, points: _Ints
) -> tuple[_Ints, list[tuple[ExecutionLayout, int]]]:
    """The levels that saturation of one model can show: ways of serving with their largest batch.

    Args:
        points: valid points of `space`, shape [points, parameters].

    Returns:
        The number of each point's level, shape [points]; the levels.
    """
    matters = np.array([p.name not in _OF_THE_QUEUE for p in space.parameters])
    shape = [len(p.values) for p in space.parameters if p.name not in _OF_THE_QUEUE]
    codes = np.ravel_multi_index(tuple(points[:, matters].T), shape)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    servings = [(space.serving(p), space.options(p)) for p in map(tuple, points[first].tolist())]
    levels = [(execution_layout(model, server), model.max_batch_size) for model, server in servings]
    distinct = {level: at for at, level in enumerate(dict.fromkeys(levels))}
    return np.array([distinct[level] for level in levels])[inverse], list(distinct)

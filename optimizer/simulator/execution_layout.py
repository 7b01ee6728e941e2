"""What decides how long an execution takes: artefact, instances and threads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.configuration.model_space import ModelSpace
from optimizer.configuration.named_parameters import names_of
from optimizer.configuration.serving_config import (
    ArtifactSpec,
    InstanceGroup,
    ModelServing,
    ServerOptions,
)

_QUEUE_PARAMETERS = names_of("queue")
"""Parameters that have no effect on how long a batch takes."""

_SIMULATED = {
    "batching",
    "max_batch_size",
    "preferred_batch_sizes",
    "max_queue_delay_us",
    "max_queue_size",
    "default_timeout_microseconds",
    "timeout_action",
}
if not_simulated := {*names_of("batcher", "queue")} - _SIMULATED:
    raise NotImplementedError(
        f"the simulated batcher (optimizer/simulator/batcher.py) ignores {sorted(not_simulated)}:"
        " simulate them and list them here, or give them another part in the table of parameters"
    )

_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ExecutionLayout:
    """All that decides how long an execution of a batch takes.

    Attributes:
        variant: what changes times beside the model file: CUDA graphs, padding, further fields of
            config.pbtxt, the server's own settings, the response cache.
        executions_per_device: limit set by the rate limiter, None without one.
        elsewhere: whether it is executed on other hardware, see `DISCREPANCIES`.
    """

    model: str
    artifact: ArtifactSpec
    groups: tuple[InstanceGroup, ...]
    variant: tuple[object, ...]
    executions_per_device: int | None = None
    elsewhere: bool = False

    @property
    def devices(self) -> int:
        """Number of devices that have an instance; a CPU is one."""
        return max(1, sum(len(group.logical_gpus) for group in self.groups))

    @property
    def executing(self) -> int:
        """Number of instances that execute at once where all have work."""
        limit = self.executions_per_device
        return sum(
            (group.count if limit is None else min(group.count, limit))
            * max(1, len(group.logical_gpus))
            for group in self.groups
        )

    @property
    def one_instance(self) -> ExecutionLayout:
        """The same with a single instance: what one of several takes while the others idle."""
        group = self.groups[0]
        alone = InstanceGroup(group.kind, 1, group.logical_gpus[:1], group.threads)
        return ExecutionLayout(self.model, self.artifact, (alone,), self.variant)


def execution_layout(model: ModelServing, server: ServerOptions) -> ExecutionLayout:
    """Return the execution layout of a served model."""
    limit = server.executions_per_device if model.rate_limited else None
    options = server.backend_config, model.cache
    variant = (model.cuda_graphs, model.padding, model.parameters, *options)
    return ExecutionLayout(model.name, model.artifact, model.groups, variant, limit)


def saturated_levels(
    space: ModelSpace, points: _Ints
) -> tuple[_Ints, list[tuple[ExecutionLayout, int]]]:
    """List the different saturated levels that the points of one model's space can show.

    Args:
        points: valid points of `space`, shape [points, parameters].

    Returns:
        The index of each point's level, shape [points]; the levels, as execution layouts with their
        largest batch.
    """
    matters = np.array([p.name not in _QUEUE_PARAMETERS for p in space.parameters])
    shape = [len(p.values) for p in space.parameters if p.name not in _QUEUE_PARAMETERS]
    codes = np.ravel_multi_index(tuple(points[:, matters].T), shape)
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    drafts = map(space.draft, points[first].tolist())
    servings = [(draft.model(), draft.server()) for draft in drafts]
    levels = [(execution_layout(model, server), model.max_batch_size) for model, server in servings]
    distinct = {level: index for index, level in enumerate(dict.fromkeys(levels))}
    return np.array([distinct[level] for level in levels])[inverse], list(distinct)

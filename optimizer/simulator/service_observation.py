"""What a saturated level says of service times. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import (
    ArtifactSpec,
    InstanceGroup,
    ModelServing,
    ServerOptions,
    ServingConfig,
)
from optimizer.measurement.level import BatchPoint, LoadLevel, MachineUse, ServerSplit

LEAST_SHARE = 0.02
"""Of the inferences; batch sizes with less are mostly the first and the last of a level."""

_FIXED_OVERHEAD = 0.25
"""Share of the overhead that may go with executions, whatever their size."""

_LIGHT_DOUBT = 0.2
"""Standard deviation of the logarithm of a time at a light load, where instances are idle."""

_QUEUES = 0.5
"""Of its executing time: a model whose requests wait for less has instances that idle."""


@dataclass(frozen=True)
class ExecutionLayout:
    """All that decides how long an execution of a batch takes.

    Attributes:
        variant: what changes times beside the model file: CUDA graphs, padding, further fields of
            config.pbtxt, the server's own settings.
    """

    model: str
    artifact: ArtifactSpec
    groups: tuple[InstanceGroup, ...]
    variant: tuple[object, ...]
    executions_per_device: int | None = None

    @property
    def devices(self) -> int:
        """Devices that have an instance; a CPU is one."""
        return max(1, sum(len(group.logical_gpus) for group in self.groups))

    @property
    def executing(self) -> int:
        """Instances that execute at once where all have work."""
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
    """What of a way of serving decides about its service times."""
    limit = server.executions_per_device if model.rate_limited else None
    variant = (model.cuda_graphs, model.padding, model.parameters, server.backend_config)
    return ExecutionLayout(model.name, model.artifact, model.groups, variant, limit)


@dataclass(frozen=True)
class BatchTime:
    """Occupancy of an instance by one execution of a batch.

    Attributes:
        batch_size: in inferences.
        executions: that the mean is drawn from.
        occupancy_ms: mean time from the start of an execution until the instance can begin the
            next one, while all instances are busy.
        doubt: standard deviation of its logarithm by what is not known of the overhead.
    """

    batch_size: int
    executions: int
    occupancy_ms: float
    doubt: float


@dataclass(frozen=True)
class ServiceObservation:
    """One model's service times at one saturated level.

    Attributes:
        network_ms: of the level, see `LoadLevel.network_ms`.
        disturbance: standard deviation of the logarithm of all times together, by what else ran on
            the cores.
    """

    way: ExecutionLayout
    times: tuple[BatchTime, ...]
    network_ms: float | None
    disturbance: float = 0.0


def observed(
    config: ServingConfig, level: LoadLevel, light: LoadLevel | None = None
) -> tuple[ServiceObservation, ...]:
    """The service times that a run shows, for each model that executed anything.

    Args:
        level: saturated, which tells of the largest batch.
        light: of the same server with less to do, which tells of small ones.

    Raises:
        ValueError: when the level is of another kind.
    """
    if level.kind != "saturation":
        raise ValueError(f"service times need a saturated level, got one of kind {level.kind}")
    return tuple(_observations(config, level, light))


def _observations(
    config: ServingConfig, level: LoadLevel, light: LoadLevel | None
) -> Iterator[ServiceObservation]:
    splits = {split.model: split for split in level.server}
    small = {split.model: split for split in light.server} if light is not None else {}
    requests = sum(split.requests for split in level.server)
    for model in config.models:
        split = splits.get(model.name)
        if split is None or not split.batches or level.achieved_per_second <= 0:
            continue
        way = execution_layout(model, config.server)
        # The counters cover the warm-up too: they give shares, the client gives the rate.
        per_second = level.achieved_per_second * split.requests / requests
        busy = len(config.models) == 1 or _queues(split)
        times = _times(split, way.executing, per_second if busy else None)
        if model.name in small:
            times += _light_times(small[model.name], split, times)
        yield ServiceObservation(way, times, level.network_ms, _disturbance(level.machine))


def _disturbance(machine: MachineUse | None) -> float:
    """Logarithm of how much faster it would have been with what other processes took of the cores.

    By how much it really was slower depends on whom they kept waiting.
    """
    if machine is None or machine.foreign_cores is None:
        return 0.0
    left = max(0.5, machine.cores - machine.foreign_cores)
    return max(0.0, math.log(machine.cores / left))


def _queues(split: ServerSplit) -> bool:
    """Whether its instances always had work: of several models one may wait for the others."""
    return split.queue_ms > _QUEUES * (split.total_ms - split.queue_ms)


def _times(
    split: ServerSplit, instances: int, requests_per_second: float | None
) -> tuple[BatchTime, ...]:
    """Compute time and overhead of each batch size.

    All instances are busy, so an execution occupies one for instances / executions a second. What
    that exceeds the compute time by is overhead (Python, transport, scheduling, the client on the
    same cores). It goes with the requests: on a real server it was 1.1, 3.4 and 6.8 ms for batches
    of 4, 16 and 32.
    """
    executions, inferences = split.executions, split.inferences
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches) / executions
    mean_batch = inferences / executions
    overhead_ms = 0.0
    if requests_per_second is not None:
        inferences_per_second = requests_per_second * inferences / split.requests
        overhead_ms = 1000 * instances * mean_batch / inferences_per_second - compute_ms
    return tuple(_time(point, overhead_ms, compute_ms, mean_batch) for point in _telling(split))


def _telling(split: ServerSplit) -> list[BatchPoint]:
    """Batch sizes that are no mere beginning or end of a level."""
    least = LEAST_SHARE * split.inferences
    return [point for point in split.batches if point.inferences >= least]


def _light_times(
    light: ServerSplit, saturated: ServerSplit, known: Sequence[BatchTime]
) -> tuple[BatchTime, ...]:
    """Of the sizes that saturation does not show; what is overhead there is taken to be here."""
    compute_ms = {point.batch_size: point.compute_ms for point in saturated.batches}
    overhead_ms = [(t.occupancy_ms - compute_ms[t.batch_size]) / t.batch_size for t in known]
    by_request = max(0.0, sum(overhead_ms) / len(overhead_ms))
    told = {time.batch_size for time in known}
    return tuple(
        BatchTime(
            point.batch_size,
            point.executions,
            point.compute_ms + by_request * point.batch_size,
            _LIGHT_DOUBT,
        )
        for point in _telling(light)
        if point.batch_size not in told
    )


def _time(
    point: BatchPoint, overhead_ms: float, mean_compute_ms: float, mean_batch: float
) -> BatchTime:
    if overhead_ms < 0:
        # Warm-up was slower, or executions overlap: the rate is what counts.
        occupancy_ms = point.compute_ms * (1 + overhead_ms / mean_compute_ms)
        return BatchTime(point.batch_size, point.executions, occupancy_ms, 0.0)
    by_requests = overhead_ms * point.batch_size / mean_batch
    occupancy_ms = point.compute_ms + by_requests
    doubt = _FIXED_OVERHEAD * abs(overhead_ms - by_requests) / occupancy_ms
    return BatchTime(point.batch_size, point.executions, occupancy_ms, doubt)

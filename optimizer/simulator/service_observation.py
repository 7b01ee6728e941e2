"""Service times observed in a saturated level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, MachineUse, ServerSplit
from optimizer.simulator.execution_layout import ExecutionLayout, execution_layout

_LEAST_SHARE = 0.02
"""Share of the inferences; rarer batch sizes are mostly the first and the last of a level."""

_FIXED_OVERHEAD = 0.25
"""Share of the overhead that may go with executions, whatever their size."""

_LIGHT_SD = 0.2
"""Standard deviation of the logarithm of a time at a light load, where instances are idle."""

_BUSY_QUEUE_SHARE = 0.5
"""Queue time relative to execution time; where requests wait for less, instances idle."""


@dataclass(frozen=True)
class BatchTime:
    """How long one execution of a batch occupies an instance.

    Attributes:
        executions: number of executions behind the mean.
        occupancy_ms: mean time from the start of an execution until the instance can begin the
            next one, while all instances are busy.
        log_sd: standard deviation of its logarithm, from the uncertainty of the overhead.
    """

    batch_size: int
    executions: int
    occupancy_ms: float
    log_sd: float


@dataclass(frozen=True)
class ServiceObservation:
    """One model's service times at one saturated level.

    Attributes:
        network_ms: `LoadLevel.network_ms` of the level.
        disturbance: standard deviation of the logarithm of all times together, by other processes
            on the cores.
    """

    layout: ExecutionLayout
    times: tuple[BatchTime, ...]
    network_ms: float | None
    disturbance: float = 0.0


def observe(
    config: ServingConfig, level: LoadLevel, light: LoadLevel | None = None
) -> tuple[ServiceObservation, ...]:
    """Return the service times that a run shows, for each model that executed anything.

    Args:
        level: saturated, which shows the largest batch.
        light: a light load on the same server, which shows small batches.

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
        if split.cache_hits:
            continue  # what the cache answers keeps cores busy, and no instance
        layout = execution_layout(model, config.server)
        # The counters cover the warm-up too: they give shares, the client gives the rate.
        per_second = level.achieved_per_second * split.requests / requests
        busy = len(config.models) == 1 or _queues(split)
        times = _times(split, layout.executing, per_second if busy else None)
        if model.name in small:
            times += _light_times(small[model.name], split, times)
        yield ServiceObservation(layout, times, level.network_ms, _disturbance(level.machine))


def _disturbance(machine: MachineUse | None) -> float:
    """Return the log speed-up to be expected had other processes taken nothing of the cores.

    The real slowdown depends on which process they kept waiting.
    """
    if machine is None or machine.foreign_cores is None:
        return 0.0
    left = max(0.5, machine.cores - machine.foreign_cores)
    return max(0.0, math.log(machine.cores / left))


def _queues(split: ServerSplit) -> bool:
    """Return whether the instances always had work: a model may wait for the others."""
    return split.queue_ms > _BUSY_QUEUE_SHARE * (split.total_ms - split.queue_ms)


def _times(
    split: ServerSplit, instances: int, requests_per_second: float | None
) -> tuple[BatchTime, ...]:
    """Return the compute time plus overhead of each batch size.

    All instances are busy, so an execution occupies one for instances / (executions a second). The
    part above the compute time is overhead (Python, transport, scheduling, the client on the same
    cores). It goes with the requests: on a real server it was 1.1, 3.4 and 6.8 ms for batches of 4,
    16 and 32.
    """
    executions, inferences = split.executions, split.inferences
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches) / executions
    mean_batch = inferences / executions
    overhead_ms = 0.0
    if requests_per_second is not None:
        inferences_per_second = requests_per_second * inferences / split.requests
        overhead_ms = 1000 * instances * mean_batch / inferences_per_second - compute_ms
    points = _frequent(split)
    return tuple(_time(point, overhead_ms, compute_ms, mean_batch) for point in points)


def _frequent(split: ServerSplit) -> list[BatchPoint]:
    least = _LEAST_SHARE * split.inferences
    return [point for point in split.batches if point.inferences >= least]


def _light_times(
    light: ServerSplit, saturated: ServerSplit, times: Sequence[BatchTime]
) -> tuple[BatchTime, ...]:
    """Return the times of sizes that saturation does not show, with the overhead of saturation."""
    compute_ms = {point.batch_size: point.compute_ms for point in saturated.batches}
    overhead_ms = [(t.occupancy_ms - compute_ms[t.batch_size]) / t.batch_size for t in times]
    by_request = max(0.0, sum(overhead_ms) / len(overhead_ms))
    saturated_sizes = {time.batch_size for time in times}
    return tuple(
        BatchTime(
            point.batch_size,
            point.executions,
            point.compute_ms + by_request * point.batch_size,
            _LIGHT_SD,
        )
        for point in _frequent(light)
        if point.batch_size not in saturated_sizes
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
    log_sd = _FIXED_OVERHEAD * abs(overhead_ms - by_requests) / occupancy_ms
    return BatchTime(point.batch_size, point.executions, occupancy_ms, log_sd)

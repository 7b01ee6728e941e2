"""Service times observed in a saturated level."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.serving_config import (
    ModelServing,
    ServerOptions,
    ServingConfig,
)
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.simulator.execution_layout import ExecutionLayout, execution_layout

_LEAST_SHARE = 0.02
"""Share of the inferences; rarer batch sizes are mostly the first and the last of a level."""

_FIXED_OVERHEAD = 0.25
"""Share of the overhead that may go with executions, whatever their size."""

_LIGHT_SD = 0.2
"""Standard deviation of the logarithm of a time at a light load, where instances are idle."""

_BUSY_QUEUE_SHARE = 0.5
"""Queue time relative to execution time; where requests wait for less, instances idle."""

_BUSY_SHARE = 0.5
"""Least share of their time that saturated instances compute; where it is less, instances idle, and
requests that wait have arrived together."""

_IDLE_SD = 0.05
"""Standard deviation of the logarithm of a time of one of several models at a light load."""

_PRODUCTION_SD = 0.05
"""Standard deviation of the logarithm of all times together in production, where instances idle. It
is not one of each batch size: in the light levels of the recorded tables, sizes depart from a
straight line by no more than the variation of single executions makes of their means."""

_LEAST_OWN_SHARE = 0.02
"""Least share of an execution of a BLS model that is its own time."""


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
class BusyModel:
    """Another model on the machine while service times were observed.

    Attributes:
        mean_busy: mean number of its instances that execute.
    """

    name: str
    mean_busy: float


@dataclass(frozen=True)
class ServiceObservation:
    """One model's service times at one level.

    Attributes:
        network_ms: `LoadLevel.network_ms` of the level.
        disturbance: standard deviation of the logarithm of all times together, by other processes
            on the cores.
        others: the other models that execute requests.
    """

    layout: ExecutionLayout
    times: tuple[BatchTime, ...]
    network_ms: float | None
    disturbance: float = 0.0
    others: tuple[BusyModel, ...] = ()


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
    models = executing(config)
    if len(models) == 1:
        return tuple(_of_one_model(config, models[0], level, light))
    levels = [level] if light is None else [level, light]
    return tuple(each for own in levels for each in _of_models(config, models, own))


def observe_running(
    model: ModelServing, server: ServerOptions, split: ServerSplit
) -> ServiceObservation:
    """Return the service times of a server in production, at whatever load it has."""
    layout = execution_layout(model, server)
    return ServiceObservation(layout, _times(split, layout.executing, None), None, _PRODUCTION_SD)


def executing(config: ServingConfig) -> tuple[ModelServing, ...]:
    """Return the models that execute requests: all but ensembles."""
    ensembles = (config.graph or NO_GRAPH).ensemble_names
    return tuple(model for model in config.models if model.name not in ensembles)


def _of_one_model(
    config: ServingConfig, model: ModelServing, level: LoadLevel, light: LoadLevel | None
) -> Iterator[ServiceObservation]:
    splits = {split.model: split for split in level.server}
    small = {split.model: split for split in light.server} if light is not None else {}
    split = splits.get(model.name)
    if split is None or not split.batches or level.achieved_per_second <= 0:
        return
    if split.cache_hits:
        return  # what the cache answers keeps cores busy, and no instance
    layout = execution_layout(model, config.server)
    # The counters cover the warm-up too: they give shares, the client gives the rate.
    per_second = level.achieved_per_second * split.requests / level.requests_received
    times = _times(split, layout.executing, per_second)
    if model.name in small:
        times += _light_times(small[model.name], split, times)
    yield ServiceObservation(layout, times, level.network_ms, math.log(level.slowdown))


def _of_models(
    config: ServingConfig, models: Sequence[ModelServing], level: LoadLevel
) -> Iterator[ServiceObservation]:
    """Yield what each of several models shows, and how busy the others are meanwhile.

    At a light load executions are slowed down less. That is what tells contention from the models'
    own times.
    """
    splits = {split.model: split for split in level.server if split.batches}
    if level.achieved_per_second <= 0 or not level.requests_received:
        return
    share = level.achieved_per_second / level.requests_received
    graph = config.graph or NO_GRAPH
    own = {
        model.name: _without_steps(splits[model.name], graph, splits)
        for model in models
        # What a response cache answers keeps cores busy, and no instance.
        if model.name in splits and not splits[model.name].cache_hits
    }
    if not own:
        return
    layouts = {m.name: execution_layout(m, config.server) for m in models if m.name in own}
    busy = {name: _mean_busy(split, share, layouts[name].executing) for name, split in own.items()}
    longest = max(own, key=lambda name: own[name].queue_ms * own[name].requests)
    for name, split in own.items():
        layout = layouts[name]
        full = name == longest and busy[name] >= _BUSY_SHARE * layout.executing
        fills = full and _queues(split)
        rate = share * split.requests if fills and name not in graph.names else None
        times = _times(split, layout.executing, rate)
        if level.kind != "saturation":
            times = tuple(replace(x, log_sd=math.hypot(x.log_sd, _IDLE_SD)) for x in times)
        others = tuple(BusyModel(other, mean) for other, mean in busy.items() if other != name)
        disturbance = math.log(level.slowdown)
        yield ServiceObservation(layout, times, level.network_ms, disturbance, others)


def busy_shares(config: ServingConfig, level: LoadLevel) -> dict[str, float]:
    """Return the share of the time that the instances of each model compute, by model."""
    splits = {split.model: split for split in level.server if split.batches}
    share = level.achieved_per_second / max(level.requests_received, 1)
    layouts = [
        (model.name, execution_layout(model, config.server).executing)
        for model in executing(config)
        if model.name in splits
    ]
    return {name: _mean_busy(splits[name], share, most) / most for name, most in layouts}


def _mean_busy(split: ServerSplit, share: float, instances: int) -> float:
    """Return the mean number of instances that compute.

    Args:
        share: of the server's counts, for a second of the level.
    """
    return min(split.executions * share * _execution_ms(split) / 1000, instances)


def _execution_ms(split: ServerSplit) -> float:
    """Return the mean time of an execution, with its inputs and outputs."""
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches)
    return compute_ms / split.executions + split.compute_input_ms + split.compute_output_ms


def _without_steps(
    split: ServerSplit, graph: ModelGraph, splits: Mapping[str, ServerSplit]
) -> ServerSplit:
    """Return the split of a BLS model without the time in which its executions wait for steps."""
    own = next((each for each in graph.composed if each.name == split.model), None)
    if own is None:
        return split
    ends_ms: dict[int, float] = {}
    for n in own.in_order():
        step = own.steps[n]
        took_ms = splits[step.model].total_ms if step.model in splits else 0.0
        ends_ms[n] = max((ends_ms[m] for m in step.after), default=0.0) + step.calls * took_ms
    waiting_ms = max(ends_ms.values(), default=0.0)
    batches = tuple(
        replace(
            b,
            compute_ms=max(
                _LEAST_OWN_SHARE * b.compute_ms, b.compute_ms - waiting_ms * b.batch_size
            ),
        )
        for b in split.batches
    )
    return replace(split, batches=batches)


def _queues(split: ServerSplit) -> bool:
    """Return whether the instances always had work: a model may wait for the others."""
    return split.queue_ms > _BUSY_QUEUE_SHARE * (split.total_ms - split.queue_ms)


def _times(
    split: ServerSplit, instances: int, requests_per_second: float | None
) -> tuple[BatchTime, ...]:
    """Return the compute time plus overhead of each batch size.

    Where all instances are busy, an execution occupies one for instances / (executions a second).
    The part above the compute time is overhead (Python, transport, scheduling, the client on the
    same cores); without a rate it is the copying of inputs and outputs. It goes with the requests:
    on a real server it was 1.1, 3.4 and 6.8 ms for batches of 4, 16 and 32.
    """
    executions, inferences = split.executions, split.inferences
    compute_ms = sum(point.executions * point.compute_ms for point in split.batches) / executions
    mean_batch = inferences / executions
    overhead_ms = split.compute_input_ms + split.compute_output_ms
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

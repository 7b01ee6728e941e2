"""The network of batchers that a serving configuration is, for the streams of a workload."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.simulator.batcher import Scheduler, scheduler_of
from optimizer.simulator.cached_service import NO_HITS, Hits
from optimizer.simulator.network import (
    Batcher,
    Contention,
    Network,
    NetworkCall,
    NetworkSource,
)
from optimizer.simulator.prediction import OfferedStream
from optimizer.simulator.service_curve import ServiceCurve
from optimizer.simulator.service_model import ServiceModel
from optimizer.simulator.service_observation import executing
from optimizer.simulator.stream_estimate import network_of_model
from optimizer.workload.streams import Stream, Workload


def served_network(config: ServingConfig, service: ServiceModel, workload: Workload) -> Network:
    """Return the network that serves a workload, with the service times of its models.

    Raises:
        KeyError: when a model was never observed.
    """
    models = executing(config)
    curves = {model.name: service.curve(model, config.server) for model in models}
    contention = service.contention([model.name for model in models])
    return network_of(config, curves, contention, workload, service.hits(config, workload))


def offered_streams(workload: Workload) -> tuple[OfferedStream, ...]:
    """Return the streams in the order of the sources of `served_network`."""
    total = workload.demand_per_second
    return tuple(
        OfferedStream(each.arrivals, each.limit, each.demand_per_second / total)
        for each in workload.streams
    )


def network_of(
    config: ServingConfig,
    curves: Mapping[str, ServiceCurve],
    contention: Contention,
    workload: Workload,
    hits: Hits = NO_HITS,
) -> Network:
    """Return the network of a configuration, given the curve of each executing model.

    The shapes of requests to a step are not known: all count as one, and as free. A step answers
    from the cache by chance, independently of the other steps.
    """
    models, graph = executing(config), config.graph or NO_GRAPH
    index = {model.name: n for n, model in enumerate(models)}
    targets = {stream.target: stream for stream in workload.streams}
    batchers = tuple(
        Batcher(
            model.name,
            _scheduler(model, curves[model.name], targets, workload.streams[0]),
            curves[model.name],
            tuple(_calls(graph, model.name, index, hits)) if model.name in graph.names else (),
        )
        for model in models
    )
    sources = []
    for stream in workload.streams:
        calls = tuple(_calls_of_target(graph, stream.target, index, hits))
        source = NetworkSource(calls, hit_rate=hits.of(stream.target))
        if stream.target in index:
            model = models[index[stream.target]]
            alone = network_of_model(model, curves[model.name], stream)
            source = replace(source, shapes=alone.sources[0].shapes)
        sources.append(source)
    outside_ms = max(curve.outside_ms for curve in curves.values())
    return Network(
        batchers, tuple(sources), contention, outside_ms, hits.lookup_ms, hits.most_per_second
    )


def _scheduler(
    model: ModelServing, curve: ServiceCurve, targets: Mapping[str, Stream], stream: Stream
) -> Scheduler:
    """Return the scheduler of a model, whose stream is the given one where it is a step."""
    scheduler = scheduler_of(model, targets.get(model.name, stream))
    if model.name not in targets:
        scheduler = replace(scheduler, free_dimensions=True)
    # Where a rate limiter lets only some of the instances execute, the curve knows how many.
    return replace(scheduler, instances=len(curve.busy_factors))


def _calls_of_target(
    graph: ModelGraph, target: str, index: Mapping[str, int], hits: Hits
) -> Sequence[NetworkCall]:
    return (NetworkCall(index[target]),) if target in index else _calls(graph, target, index, hits)


def _calls(
    graph: ModelGraph, composed: str, index: Mapping[str, int], hits: Hits
) -> list[NetworkCall]:
    """Return the calls of a composed model; steps that are ensembles are their own steps."""
    calls: list[NetworkCall] = []
    _add_steps(calls, graph, composed, (index, hits), (), 1.0)
    return calls


def _add_steps(
    calls: list[NetworkCall],
    graph: ModelGraph,
    composed: str,
    models: tuple[Mapping[str, int], Hits],
    after: tuple[int, ...],
    count: float,
) -> tuple[int, ...]:
    """Add the steps of a composed model, after other calls; return the calls that end it.

    Args:
        models: their numbers, and what the cache answers of them.
        count: of the composed model.
    """
    index, hits = models
    [own] = [each for each in graph.composed if each.name == composed]
    ends: dict[int, tuple[int, ...]] = {}
    for n in own.in_order():
        step = own.steps[n]
        before = tuple(_joined(ends[m] for m in step.after)) or after
        calls_of_step = count * step.calls * (1.0 - hits.of(step.model))
        if step.model in index:
            ends[n] = (len(calls),)
            calls.append(NetworkCall(index[step.model], before, calls_of_step))
        else:
            inner = (calls, graph, step.model, models, before, calls_of_step)
            ends[n] = _add_steps(*inner)
    taken = {m for step in own.steps for m in step.after}
    return tuple(_joined(ends[n] for n in ends if n not in taken))


def _joined(groups: Iterator[tuple[int, ...]]) -> Iterator[int]:
    return iter(dict.fromkeys(n for group in groups for n in group))

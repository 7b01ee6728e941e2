"""Where the time of a pipeline's requests goes: the part of each step in one load level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from optimizer.configuration.model_graph import NO_GRAPH, ComposedModel, ModelGraph
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.level import BatchPoint, LoadLevel, ServerSplit
from optimizer.simulator.execution_layout import execution_layout


@dataclass(frozen=True)
class StepTimes:
    """The part of one model in a request to the pipeline: means in ms, over all of its calls.

    Attributes:
        calls: of the model, for each request to the pipeline.
        infer_ms: of a BLS model without the time of its steps, for which it waits.
        path_ms: the part of the longest path through the steps, queue included. Less than the sum
            of the other times, or 0, where the model works beside a longer branch.
        instances: that can execute at once.
        busy: share of the time for which these execute; a BLS model waits meanwhile.
        hit_rate, expected_hit_rate: share of its requests that the response cache answered, and
            that of a cache in steady state; None without a cache, and where it is not known.
    """

    model: str
    calls: float
    queue_ms: float
    input_ms: float
    infer_ms: float
    output_ms: float
    path_ms: float
    instances: int
    busy: float
    hit_rate: float | None = None
    expected_hit_rate: float | None = None

    @property
    def compute_ms(self) -> float:
        """Input, infer and output together."""
        return self.input_ms + self.infer_ms + self.output_ms

    @property
    def own_ms(self) -> float:
        """Queue and compute together."""
        return self.queue_ms + self.compute_ms

    @property
    def path_queue_ms(self) -> float:
        """The part of `path_ms` in the queue."""
        return self.path_ms * self.queue_ms / self.own_ms if self.own_ms else 0.0


@dataclass(frozen=True)
class PipelineTimes:
    """The means of one load level.

    Attributes:
        per_second: requests to the pipeline that were answered.
        request_ms: from sending to reply.
    """

    per_second: float
    saturated: bool
    steps: tuple[StepTimes, ...]
    request_ms: float

    def share(self, step: StepTimes) -> float:
        """Return the share of a step in the time of a request."""
        return step.path_ms / self.request_ms if self.request_ms else 0.0

    @property
    def rest_ms(self) -> float:
        """The time between client and server and between the steps."""
        return max(0.0, self.request_ms - sum(step.path_ms for step in self.steps))


def composed_targets(config: ServingConfig) -> tuple[str, ...]:
    """Return the names of the pipelines that clients send requests to."""
    names = (config.graph or NO_GRAPH).names
    return tuple(model.name for model in config.targets if model.name in names)


def pipeline_times(config: ServingConfig, target: str, level: LoadLevel) -> PipelineTimes | None:
    """Return where the time of requests to a pipeline goes; None without the server's statistics.

    The server's counters cover the warm-up too: they give shares, and the client gives the rate.
    """
    graph = config.graph or NO_GRAPH
    part = config.part(target)
    names = {model.name for model in part.models}
    splits = {split.model: split for split in level.server if split.model in names}
    if len(splits) < len(names) or not splits[target].requests:
        return None
    received = splits[target].requests
    per_second = level.achieved_per_second * received / level.requests_received
    paths = _Paths(graph, splits)
    path = paths.through(target)
    steps = []
    for model in part.models:
        split = splits[model.name]
        if split.ensemble:
            continue
        calls = split.requests / received
        executing = execution_layout(model, config.server).executing
        waiting_ms = sum(paths.through_steps(model.name).values())
        steps.append(
            StepTimes(
                model.name,
                calls,
                calls * split.queue_ms,
                calls * split.compute_input_ms,
                calls * max(0.0, split.compute_infer_ms - waiting_ms),
                calls * split.compute_output_ms,
                path.get(model.name, 0.0),
                executing,
                busy_ms(split) / received * per_second / 1000 / executing,
                split.hit_rate,
                split.expected_hit_rate,
            )
        )
    in_server = splits[target].request_ms or sum(path.values())
    alone = level.requests_received == received
    replied_ms = level.replied_ms if alone else None
    saturated = level.kind == "saturation"
    return PipelineTimes(per_second, saturated, tuple(steps), replied_ms or in_server)


def execution_ms(split: ServerSplit, point: BatchPoint) -> float:
    """Return how long an execution of a batch occupies an instance, as the server counts it."""
    return split.compute_input_ms + point.compute_ms + split.compute_output_ms


def busy_ms(split: ServerSplit) -> float:
    """Return the time of all executions of a model together."""
    return sum(point.executions * execution_ms(split, point) for point in split.batches)


@dataclass(frozen=True)
class _Paths:
    """The longest paths through the models of a graph, by the server's statistics."""

    graph: ModelGraph
    splits: Mapping[str, ServerSplit]

    @cached_property
    def _made(self) -> Mapping[str, float]:
        """By model, the calls that were made for each that the graph states.

        Fewer than 1 where a response cache answers before the steps do.
        """
        stated: dict[str, float] = {}
        for composed in self.graph.composed:
            requests = self.splits[composed.name].requests if composed.name in self.splits else 0
            for step in composed.steps:
                stated[step.model] = stated.get(step.model, 0.0) + step.calls * requests
        return {name: self.splits[name].requests / calls for name, calls in stated.items() if calls}

    def through(self, model: str) -> dict[str, float]:
        """Return by model the ms of one request to a model, along the longest path in it."""
        split, inside = self.splits[model], self.through_steps(model)
        if split.ensemble:
            return inside
        own_ms = max(0.0, split.total_ms - sum(inside.values()))
        return _sum(inside, {model: own_ms})

    def through_steps(self, model: str) -> dict[str, float]:
        """Return by model the ms of the longest path through a model's steps; {} without steps."""
        composed = next((each for each in self.graph.composed if each.name == model), None)
        if composed is None:
            return {}
        return max(self._ends(composed), key=lambda path: sum(path.values()))

    def _ends(self, composed: ComposedModel) -> list[dict[str, float]]:
        """Return the longest path that ends with each step of a composed model."""
        paths: dict[int, dict[str, float]] = {}
        for n in composed.in_order():
            step = composed.steps[n]
            before = (paths[earlier] for earlier in step.after)
            longest: dict[str, float] = max(before, key=lambda path: sum(path.values()), default={})
            calls = step.calls * self._made.get(step.model, 0.0)
            own = {name: calls * ms for name, ms in self.through(step.model).items()}
            paths[n] = _sum(longest, own)
        return list(paths.values())


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0.0) + other.get(name, 0.0) for name in {**one, **other}}

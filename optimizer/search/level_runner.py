"""Load levels on a configuration that is being served, with statistics of server and machine."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from optimizer.configuration.model_graph import NO_GRAPH, ModelGraph
from optimizer.configuration.serving_config import ModelServing, ServingConfig
from optimizer.errors import LoadTestFailure, VoidLevelFailure
from optimizer.files.request_payloads import rows_of_file
from optimizer.load.capacity import RunLevel
from optimizer.load.client import LoadClient
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, PreparedStream, Target
from optimizer.load.request_sequence import Once
from optimizer.machine.slots import Slot
from optimizer.machine.utilisation import MachineWatch, contention, withheld_time
from optimizer.measurement.level import LoadLevel, ServerSplit, StreamLevel
from optimizer.measurement.level_checks import sent_requests
from optimizer.measurement.resource_use import MachineUse
from optimizer.search.response_cache import (
    held_numbers,
    is_cached,
    sequence_of,
    varies,
    with_expected_hits,
)
from optimizer.simulator.response_cache import (
    EMPTY,
    SteadyCache,
    cached_models,
    entry_bytes,
    steady_cache,
)
from optimizer.study.events import LevelFinished, LevelStarted, Watcher
from optimizer.triton.liveness import Liveness
from optimizer.triton.metrics import gauges
from optimizer.triton.model_config import outputs_of_fixed_size
from optimizer.triton.requests import serialised
from optimizer.triton.session import ServedConfiguration
from optimizer.triton.statistics import server_split
from optimizer.workload.streams import Stream, Tensors, Workload
from optimizer.workload.variations import variations_of

_POOL = 128
"""Distinct requests that a stream with drawn values cycles through, at least."""

_PAYLOAD_SEED = 7
_LEAST_OUTSTANDING = 8

_REPLY_SECONDS = 30.0

_FILL_SECONDS = 60.0
"""Longest time of filling the response cache, for each stream."""

_SOAK_SECONDS = 60.0
"""Load that warms a GPU up before the first level, because a cold GPU clocks higher."""


class LevelRunner:
    """Runs load levels against the server.

    Attributes:
        slot: where server and load client run.

    Args:
        rng: draws the arrival times of every load level.
    """

    def __init__(
        self,
        client: LoadClient,
        workload: Workload,
        slot: Slot,
        rng: np.random.Generator,
        watch: Watcher,
    ) -> None:
        self._client = client
        self._workload = workload
        self.slot = slot
        self._rng = rng
        self._watch = watch
        self._drawn: dict[tuple[str, tuple[int, ...]], list[Tensors]] = {}
        self._distinct: int | None = None
        self._cold = bool(slot.gpu_uuids)

    def for_workload(self, workload: Workload, requests: int | None = None) -> LevelRunner:
        """Return a runner of another workload with the same load client.

        Args:
            requests: distinct requests of each stream; None for the usual number.
        """
        other = copy(self)
        other._workload, other._drawn, other._distinct = workload, {}, requests
        return other

    @contextmanager
    def on(
        self, served: ServedConfiguration, config: ServingConfig, *, cold: bool = False
    ) -> Iterator[RunLevel]:
        """Yield a function that runs a level on this server.

        Args:
            cold: whether the models get no request before the first level.

        Raises:
            LoadTestFailure: also where the server ended, or its GPU was throttled by heat.
            ServerFailure: when the server does not report its statistics, or a model died or
                hangs.
        """
        with ExitStack() as stack:
            target = stack.enter_context(self.target(served, config))
            cache = EMPTY if cold else self._response_cache(served, config)
            if self._cold and not cold:
                soak = LevelPlan(ClosedLoop(concurrency(config)), 0.0, _SOAK_SECONDS, 30.0)
                self._client.run_level(soak, target, self._rng)
                self._cold = False
            liveness = Liveness(served, partial(self._one_of_each, config))
            liveness.check_processes()
            if not cold:
                liveness.check_replies()
            warnings = self._fill(cache, target, config)
            context = _LevelContext(served, config, liveness, cache, warnings)
            yield lambda plan: self._run(plan, target, context)

    def _one_of_each(self, config: ServingConfig) -> dict[str, Tensors]:
        """Return a request to each target, drawn anew where a cache would answer an old one."""
        return {stream.target: self._one_of(stream, config) for stream in self._workload.streams}

    def _one_of(self, stream: Stream, config: ServingConfig) -> Tensors:
        if stream.payloads.file is not None or not is_cached(stream, config):
            return self.requests(stream, config)[0]
        padding = _model(config, stream).padding
        [request] = stream.payloads.sample(1, self._rng, padding, stream.batch_size)
        return request

    def _response_cache(self, served: ServedConfiguration, config: ServingConfig) -> SteadyCache:
        """Return the steady state of the response cache; empty without one."""
        sizes: dict[str, int] = {}
        for stream in self._workload.streams:
            for name in cached_models(config, stream.target):
                outputs = (
                    served.control.outputs_of_one_request(
                        stream.target, self._one_of(stream, config), _REPLY_SECONDS
                    )
                    if name == stream.target
                    else outputs_of_fixed_size(served.control.config(name), stream.batch_size)
                )
                if outputs is not None:
                    sizes[name] = entry_bytes(outputs)
        return steady_cache(config, self._workload.streams, sizes)

    def _fill(self, cache: SteadyCache, target: Target, config: ServingConfig) -> tuple[str, ...]:
        """Fill the cache with what it holds in steady state; return what is to be said of it."""
        warnings = []
        for prepared in target.streams:
            name = prepared.stream.name
            numbers = held_numbers(prepared.stream, cache.entries.get(name, 0), self._rng)
            if not len(numbers):
                continue
            plan = LevelPlan(ClosedLoop(concurrency(config)), 0.0, _FILL_SECONDS, 30.0)
            alone = replace(target, streams=(replace(prepared, sequence=Once(numbers)),))
            filled = sent_requests(self._client.run_level(plan, alone, self._rng))
            if filled < len(numbers):
                warnings.append(
                    f"the response cache was filled with {filled:,} of the {len(numbers):,} "
                    f"responses to {name} that it holds in steady state, in {_FILL_SECONDS:g} s: "
                    "expect more hits than were measured"
                )
        return tuple(warnings)

    def _run(
        self,
        plan: LevelPlan,
        target: Target,
        context: _LevelContext,
    ) -> LoadLevel:
        served, config, liveness = context.served, context.config, context.liveness
        names = [model.name for model in config.models]
        self._watch(LevelStarted(self._offered(plan), plan.sending_seconds))
        before = [served.control.statistics(name) for name in names]
        machine = MachineWatch(self.slot, served.server.cpu_seconds)
        try:
            level = self._client.run_level(plan, target, self._rng)
        except LoadTestFailure:
            liveness.check()
            raise
        use = machine.stop(
            level.client.cpu_seconds,
            served.server.memory_with_models_bytes(),
            gauges(served.server.endpoint.metrics),
        )
        liveness.check_processes(level)
        _refuse_overheated(use)
        after = [served.control.statistics(name) for name in names]
        liveness.check_replies()
        warnings = [text for text in (contention(use), withheld_time(use)) if text is not None]
        splits = with_roles(map(server_split, before, after), config.graph)
        level = replace(
            level,
            streams=tuple(self._explained(stream, served) for stream in level.streams),
            server=tuple(with_expected_hits(each, config, context.cache) for each in splits),
            machine=use,
            warnings=(*level.warnings, *warnings, *context.warnings),
        )
        self._watch(LevelFinished(level))
        return level

    def _explained(self, level: StreamLevel, served: ServedConfiguration) -> StreamLevel:
        """Return a stream's level with the step that its first error came from."""
        if level.first_error is None:
            return level
        [target] = [each.target for each in self._workload.streams if each.name == level.name]
        return replace(level, first_error=served.control.explained(target, level.first_error))

    def _offered(self, plan: LevelPlan) -> float | None:
        if not isinstance(plan.load, OpenLoop):
            return None
        return plan.load.load_factor * self._workload.demand_per_second

    @contextmanager
    def target(self, served: ServedConfiguration, config: ServingConfig) -> Iterator[Target]:
        """Yield the server with the serialised requests, which are valid within the context.

        Raises:
            ServerFailure: when the server refuses shared memory.
            StorageError: when there is not enough shared memory.
        """
        transport, endpoint = self._workload.transport, served.server.endpoint
        with ExitStack() as stack:
            streams = []
            for stream in self._workload.streams:
                tensors = self.requests(stream, config)
                variations = [
                    variations_of(stream.payloads, each)
                    for each in (tensors if varies(stream, config) else ())
                ]
                requests = serialised(served.control, stream.target, tensors, transport, variations)
                prepared = stack.enter_context(requests)
                streams.append(PreparedStream(stream, prepared, sequence_of(stream)))
            address = endpoint.grpc if transport.protocol == "grpc" else endpoint.http
            yield Target(transport.protocol, address, tuple(streams))

    def requests(self, stream: Stream, config: ServingConfig) -> list[Tensors]:
        """Return the stream's requests, drawn once for every padding.

        Raises:
            ChangedRequestsError: when their file is gone or has changed.
        """
        model = _model(config, stream)
        key = (stream.name, model.padding)
        if key not in self._drawn:
            rng = np.random.default_rng(_PAYLOAD_SEED)
            rows = rows_of_file(stream.payloads)
            self._drawn[key] = stream.payloads.sample(
                self._distinct or _pool_size(stream), rng, model.padding, stream.batch_size, rows
            )
        return self._drawn[key]


@dataclass(frozen=True)
class _LevelContext:
    """What levels run on.

    Attributes:
        warnings: for every level.
    """

    served: ServedConfiguration
    config: ServingConfig
    liveness: Liveness
    cache: SteadyCache
    warnings: tuple[str, ...]


def with_roles(splits: Iterable[ServerSplit], graph: ModelGraph | None) -> tuple[ServerSplit, ...]:
    """Return the models' splits with what the models are in a pipeline."""
    graph = graph or NO_GRAPH
    of = {split.model: split for split in splits}

    def waiting_ms(split: ServerSplit) -> float:
        if split.model in graph.ensemble_names:
            return 0.0
        calls = ((step.calls, of[step.model]) for step in graph.steps_of(split.model))
        waiting = sum(count * (own.request_ms or own.total_ms) for count, own in calls)
        return min(split.compute_infer_ms, waiting)

    return tuple(
        replace(
            split,
            ensemble=split.model in graph.ensemble_names,
            step=split.model in graph.step_names,
            waiting_ms=waiting_ms(split),
        )
        for split in of.values()
    )


def _pool_size(stream: Stream) -> int:
    """Return the number of requests to cycle through; each of a file is sent in its order."""
    file = stream.payloads.file
    if file is None:
        return _POOL
    of_file = math.ceil(file.requests / stream.batch_size)
    return of_file if stream.payloads.recorded else max(_POOL, of_file)


def _refuse_overheated(use: MachineUse) -> None:
    for gpu in use.gpus:
        if gpu.overheated:
            reasons = ", ".join(gpu.throttled)
            raise VoidLevelFailure(
                f"could not be measured: {gpu.name} ({gpu.uuid}) was throttled ({reasons})"
            )


def concurrency(config: ServingConfig) -> int:
    """Return the outstanding requests that saturate: twice the largest batch of every instance.

    Bounded queues get no more than they and the instances hold: a client whose request is rejected
    pauses, and the instances would be idle.
    """
    wanted = sum(2 * model.max_batch_size * model.instance_count for model in config.models)
    bounds = (
        queue + min(queue, model.max_batch_size) * model.instance_count
        for model in config.models
        if model.batching is not None and (queue := model.batching.queue_policy.max_queue_size)
    )
    return min([max(_LEAST_OUTSTANDING, wanted), *bounds])


def _model(config: ServingConfig, stream: Stream) -> ModelServing:
    return next(model for model in config.models if model.name == stream.target)

"""Measuring one configuration: a seam, and its implementation on a real server.

What goes wrong with one configuration becomes its outcome, with the reason. Only `TrialFailure` is
turned into one: anything else is a defect or ends the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from optimizer.errors import LoadTestFailure, TrialFailure
from optimizer.load.capacity import (
    CapacityProtocol,
    CapacityResult,
    RunLevel,
    find_capacity,
)
from optimizer.load.client import LoadClient
from optimizer.load.holding import hold_load
from optimizer.load.plan import LevelPlan, OpenLoop, PreparedStream
from optimizer.machine import Slot
from optimizer.measurement import LoadLevel, Measurement
from optimizer.search.events import LevelEnded, LevelStarted, StepStarted, Watcher
from optimizer.serving_config import ArtifactSpec, ModelServing, ServingConfig
from optimizer.trial_record import Failure, Outcome, Seconds
from optimizer.triton.control import prepared_request, server_split
from optimizer.triton.session import ModelFiles, Served, ServingSession
from optimizer.workload import Stream, Workload

_POOL = 128
"""Distinct requests that a stream cycles through."""

_PAYLOAD_SEED = 7
_LEAST_OUTSTANDING = 8


@dataclass(frozen=True)
class Evaluation:
    """What measuring one configuration gave.

    Attributes:
        excess: how far the level that decided was over the limit, relative to it; <= 0 met it.
            0 for `bounded`, whose latency was not measured; None for `failed`.
        saturation_per_second: rate under saturation, None where it was not measured.
    """

    outcome: Outcome
    reason: str
    measurement: Measurement | None = None
    excess: float | None = None
    saturation_per_second: float | None = None
    failure: Failure | None = None
    seconds: Seconds = field(default_factory=Seconds)


class Evaluator(Protocol):
    """Measures configurations on a slot."""

    def evaluate(self, config: ServingConfig, slot: Slot, worse_below: float | None) -> Evaluation:
        """Find the capacity.

        Args:
            worse_below: load factor under which the configuration is not wanted; one that is
                provably below it ends as `bounded`.
        """

    def confirm(
        self,
        config: ServingConfig,
        slot: Slot,
        capacity: float,
        at_demand: Callable[[float], float],
    ) -> Evaluation:
        """Measure anew at a load factor and at the demand per replica, see `hold_load`."""


@dataclass(frozen=True)
class Protocols:
    """How long levels take in the search, and when confirming."""

    search: CapacityProtocol
    confirm: CapacityProtocol


class LiveEvaluator:
    """Serves configurations on a real server and load-tests them.

    Args:
        files: what serving needs, by artefact.
        rng: gives every load level its arrival times.
    """

    def __init__(
        self,
        session: ServingSession,
        client: LoadClient,
        workload: Workload,
        files: Mapping[ArtifactSpec, ModelFiles],
        protocols: Protocols,
        rng: np.random.Generator,
        watch: Watcher,
    ) -> None:
        self._session = session
        self._client = client
        self._workload = workload
        self._files = files
        self._protocols = protocols
        self._rng = rng
        self._watch = watch
        self._prepared: dict[tuple[str, tuple[int, ...]], tuple[bytes, ...]] = {}

    def evaluate(self, config: ServingConfig, slot: Slot, worse_below: float | None) -> Evaluation:
        """See `Evaluator`."""

        def measure(run: RunLevel) -> CapacityResult:
            outstanding = concurrency(config)
            return find_capacity(
                run, self._workload, self._protocols.search, outstanding, worse_below
            )

        return self._measured(config, measure)

    def confirm(
        self,
        config: ServingConfig,
        slot: Slot,
        capacity: float,
        at_demand: Callable[[float], float],
    ) -> Evaluation:
        """See `Evaluator`."""

        def measure(run: RunLevel) -> CapacityResult:
            return hold_load(run, self._workload, self._protocols.confirm, capacity, at_demand)

        return self._measured(config, measure)

    def _measured(
        self, config: ServingConfig, measure: Callable[[RunLevel], CapacityResult]
    ) -> Evaluation:
        started = time.monotonic()
        self._watch(StepStarted("loading the model"))
        serving = measuring = 0.0
        try:
            served = self._session.serve(config, self._files_of(config))
            serving = time.monotonic() - started
            try:
                result = measure(self._levels_on(served, config))
            except TrialFailure as error:
                raise self._session.failure(error) from error
            measuring = time.monotonic() - started - serving
            self._session.retire()
        except TrialFailure as error:
            measuring = measuring or max(0.0, time.monotonic() - started - serving)
            spent = Seconds(serving=serving, measuring=measuring if serving else 0.0)
            kind = type(error).__name__
            failure = Failure(kind, error.transient, error.out_of_memory)
            return Evaluation("failed", str(error), failure=failure, seconds=spent)
        return _evaluation(result, Seconds(measuring=measuring, serving=serving))

    def _files_of(self, config: ServingConfig) -> dict[str, ModelFiles]:
        return {model.name: self._files[model.artifact] for model in config.models}

    def _levels_on(self, served: Served, config: ServingConfig) -> RunLevel:
        """Runs a level on this server, with the server's own statistics of it."""
        streams = [
            PreparedStream(stream, self._requests(stream, _model(config, stream)))
            for stream in self._workload.streams
        ]
        names = [model.name for model in config.models]

        def run(plan: LevelPlan) -> LoadLevel:
            self._watch(LevelStarted(self._offered(plan), plan.sending_seconds))
            before = [served.control.statistics(name) for name in names]
            cpu = served.server.cpu_seconds()
            level = self._client.run_level(plan, streams, served.server.endpoint.grpc, self._rng)
            if (reason := served.server.ended()) is not None:
                raise LoadTestFailure(reason)
            after = [served.control.statistics(name) for name in names]
            spent = served.server.cpu_seconds()
            level = replace(
                level,
                server=tuple(map(server_split, before, after)),
                server_cpu_seconds=spent - cpu if spent is not None and cpu is not None else None,
            )
            self._watch(LevelEnded(level))
            return level

        return run

    def _offered(self, plan: LevelPlan) -> float | None:
        if not isinstance(plan.load, OpenLoop):
            return None
        return plan.load.load_factor * self._workload.demand_per_second

    def _requests(self, stream: Stream, model: ModelServing) -> tuple[bytes, ...]:
        """The stream's requests as they go over the wire, made once for every way of padding."""
        key = (stream.name, model.padding)
        if key not in self._prepared:
            rng = np.random.default_rng(_PAYLOAD_SEED)
            tensors = stream.payloads.sample(_POOL, rng, model.padding)
            self._prepared[key] = tuple(prepared_request(stream.target, t) for t in tensors)
        return self._prepared[key]


def concurrency(config: ServingConfig) -> int:
    """Requests kept outstanding to saturate: every instance's largest batch, twice over."""
    wanted = sum(2 * model.max_batch_size * model.instance_count for model in config.models)
    return max(_LEAST_OUTSTANDING, wanted)


def _model(config: ServingConfig, stream: Stream) -> ModelServing:
    return next(model for model in config.models if model.name == stream.target)


def _evaluation(result: CapacityResult, seconds: Seconds) -> Evaluation:
    measurement = result.measurement
    saturated = [x for x in measurement.levels if x.kind == "saturation"]
    return Evaluation(
        outcome=result.verdict,
        reason=measurement.ended,
        measurement=measurement,
        excess=result.excess if result.excess is not None else 0.0,
        saturation_per_second=saturated[0].achieved_per_second if saturated else None,
        seconds=seconds,
    )

"""Measure what bursts of requests do to a configuration, with a bounded queue and without.

A burst above the capacity fills the queue, and every request that waits in an unbounded queue
longer than the limit is executed for nothing, while others wait for it. A queue that holds no more
than can be served within the limit rejects the others at once.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from optimizer.configuration.serving_config import (
    NO_QUEUE_POLICY,
    ModelServing,
    QueuePolicy,
    ServingConfig,
)
from optimizer.errors import TrialFailure
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.measurement.bursts import BurstComparison, BurstLevel, QueueBound, QueueUnderBursts
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import longest_lag_ms, sent_requests
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.response_cache import without_cache, without_repeats
from optimizer.triton.session import files_of
from optimizer.workload.arrivals import ArrivalTrace
from optimizer.workload.streams import Workload

_HEIGHTS = (1.5, 2.0, 3.0)
"""Request rates in bursts, as shares of the certified rate."""

_QUIET, _QUIET_PER_BURST = 0.4, 4.0
"""Request rate between bursts, as a share of the certified rate, and how much longer than a burst
it lasts: a server is idle again before the next of the highest bursts."""

_SHORTEST_BURST_SECONDS, _LONGEST_BURST_SECONDS = 0.3, 1.5
_CYCLES = 2
_LOADING_SECONDS = 5.0
_SEED = 11


def measure_bursts(
    evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
) -> BurstComparison:
    """Measure bursts on a configuration within about `seconds`.

    Args:
        load_factor: certified load.

    Raises:
        TrialFailure: the server is stopped.
    """
    workload = without_repeats(evaluator.workload)
    plain = without_cache(config)
    variants = [plain, *_otherwise(plain, workload, load_factor)]
    affordable = seconds / len(variants) - _LOADING_SECONDS
    longest = affordable / (len(_HEIGHTS) * _CYCLES * (1 + _QUIET_PER_BURST))
    burst_seconds = min(_LONGEST_BURST_SECONDS, max(_SHORTEST_BURST_SECONDS, longest))
    offered = [_in_bursts(workload, load_factor, each, burst_seconds) for each in _HEIGHTS]
    try:
        queues = tuple(
            QueueUnderBursts(tuple(_bounds(each)), tuple(_levels(evaluator, each, offered)))
            for each in variants
        )
    except TrialFailure as error:
        raise evaluator.session.failure(error) from error
    return BurstComparison(
        config,
        queues,
        load_factor * workload.demand_per_second,
        _QUIET,
        _QUIET_PER_BURST * burst_seconds,
        burst_seconds,
        _CYCLES,
        longest_lag_ms(workload.shortest_limit_ms),
    )


@dataclass(frozen=True)
class _Bursts:
    """Streams that arrive in bursts, and the level that offers whole cycles of them."""

    height: float
    workload: Workload
    load_factor: float
    seconds: float


def _in_bursts(
    workload: Workload, load_factor: float, height: float, burst_seconds: float
) -> _Bursts:
    cycle_seconds = (1 + _QUIET_PER_BURST) * burst_seconds
    mean = (_QUIET * _QUIET_PER_BURST + height) / (1 + _QUIET_PER_BURST)
    streams = tuple(
        replace(
            stream,
            arrivals=_cycle(load_factor * stream.demand_per_second, height, burst_seconds),
        )
        for stream in workload.streams
    )
    return _Bursts(
        height,
        replace(workload, streams=streams),
        load_factor * mean,
        _CYCLES * cycle_seconds,
    )


def _cycle(certified_per_second: float, height: float, burst_seconds: float) -> ArrivalTrace:
    """Return arrivals at random moments of a quiet time, and then of a burst."""
    rng = np.random.default_rng(_SEED)
    quiet_seconds = _QUIET_PER_BURST * burst_seconds
    quiet = max(1, round(certified_per_second * _QUIET * quiet_seconds))
    burst = max(1, round(certified_per_second * height * burst_seconds))
    in_quiet = rng.uniform(0.0, quiet_seconds, quiet)
    in_burst = quiet_seconds + rng.uniform(0.0, burst_seconds, burst)
    seconds = np.sort(np.concatenate([in_quiet, in_burst]))
    sha256 = hashlib.sha256(seconds.tobytes()).hexdigest()
    return ArrivalTrace(sha256, tuple(seconds.tolist()), quiet_seconds + burst_seconds)


def _otherwise(
    config: ServingConfig, workload: Workload, load_factor: float
) -> Iterator[ServingConfig]:
    """Yield the configuration with bounded queues, or with unbounded ones where it has bounds."""
    rates: dict[str, float] = {}
    limits_ms: dict[str, float] = {}
    for stream in workload.streams:
        name, limit_ms = stream.target, stream.limit.latency_ms
        rates[name] = rates.get(name, 0.0) + load_factor * stream.demand_per_second
        limits_ms[name] = min(limits_ms.get(name, math.inf), limit_ms)
    waiting = {name: math.floor(rates[name] * limits_ms[name] / 1e3) for name in rates}
    bounded = any(each.bounds for each in map(_policy, config.models))
    models = tuple(
        _with_policy(each, NO_QUEUE_POLICY if bounded else _policy_for(each, waiting))
        for each in config.models
    )
    if models != config.models:
        yield replace(config, models=models)


def _policy(model: ModelServing) -> QueuePolicy:
    return model.batching.queue_policy if model.batching is not None else NO_QUEUE_POLICY


def _with_policy(model: ModelServing, policy: QueuePolicy) -> ModelServing:
    if model.batching is None:
        return model
    return replace(model, batching=replace(model.batching, queue_policy=policy))


def _policy_for(model: ModelServing, waiting: Mapping[str, int]) -> QueuePolicy:
    """Return a queue of what is served within the limit, and at least of the largest batch.

    Args:
        waiting: requests that are served within the limit, by model that clients send them to.
    """
    if model.name not in waiting:
        return NO_QUEUE_POLICY
    return QueuePolicy(max_queue_size=max(model.max_batch_size, waiting[model.name], 1))


def _bounds(config: ServingConfig) -> Iterator[QueueBound]:
    for model in config.models:
        if model.batching is not None:
            yield QueueBound(model.name, model.batching.queue_policy.max_queue_size)


def _levels(
    evaluator: LiveEvaluator, config: ServingConfig, offered: Sequence[_Bursts]
) -> Iterator[BurstLevel]:
    """Serve a configuration and yield a level of each height."""
    session = evaluator.session
    session.retire(wait=True)
    served = session.serve(config, files_of(config, evaluator.files))
    for bursts in offered:
        plan = LevelPlan(
            OpenLoop(bursts.load_factor),
            0.0,
            bursts.seconds,
            evaluator.protocols.search.check_timeout_seconds,
            # The beginning of a burst must not be taken for warm-up.
            cold=True,
        )
        with evaluator.levels.for_workload(bursts.workload).on(served, config) as run:
            yield _burst_level(bursts.height, run(plan))
    session.retire()


def _burst_level(height: float, level: LoadLevel) -> BurstLevel:
    sent = sent_requests(level)
    good = sum(stream.within_limit or 0 for stream in level.streams)
    return BurstLevel(
        height=height,
        within_limit=good / sent,
        rejected=level.rejected / sent,
        p50_ms=level.latency_ms(50),
        p95_ms=level.latency_ms(95),
        goodput_per_second=good / level.seconds,
        lag_ms=level.client.lag_ms,
    )

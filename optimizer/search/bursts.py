"""Measure what bursts of requests do to a configuration, with a bounded queue and without.

A burst above the capacity fills the queue, and every request that waits in an unbounded queue
longer than the limit is executed for nothing, while others wait for it. A queue that holds no more
than can be served within the limit rejects the others at once.

On cores that the load generator shares with the server, it takes the time of a request from the
server, and at real-time priority all that it needs. Bursts are no higher than leaves the server
most of the cores that it has at the certified rate, and a level that left it less is void.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from optimizer.configuration.serving_config import (
    NO_QUEUE_POLICY,
    ModelServing,
    QueuePolicy,
    ServingConfig,
)
from optimizer.errors import TrialFailure, VoidLevelFailure
from optimizer.load.level_plan import LevelPlan, OpenLoop
from optimizer.measurement.bursts import (
    BurstComparison,
    BurstLevel,
    QueueBound,
    QueueUnderBursts,
    SendingCost,
)
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import (
    first_error,
    longest_lag_ms,
    sent_requests,
    why_void,
)
from optimizer.search.evaluator import LiveEvaluator
from optimizer.search.response_cache import without_cache, without_repeats
from optimizer.triton.session import ServedConfiguration, files_of
from optimizer.workload.arrivals import Bursts
from optimizer.workload.streams import Workload

_HEIGHTS = (1.5, 2.0, 3.0)
"""Request rates in bursts, as shares of the certified rate, where the load generator can send them.
"""

_LOWEST_HEIGHT = 1.2
"""Below it a burst is hardly one, and nothing is measured."""

_PLANNED_SHARE, _LEAST_SHARE = 0.8, 0.7
"""Cores of the server in a burst, as a share of those at the certified rate: for which bursts are
planned, and below which a level is void."""

_QUIET, _QUIET_PER_BURST = 0.4, 4.0
"""Request rate between bursts, as a share of the certified rate, and how much longer than a burst
it lasts: a server is idle again before the next of the highest bursts."""

_SHORTEST_BURST_SECONDS, _LONGEST_BURST_SECONDS = 0.3, 1.5
_CYCLES = 2
_LOADING_SECONDS = 5.0
_PROBE_SECONDS = 3.0


def measure_bursts(
    evaluator: LiveEvaluator, config: ServingConfig, load_factor: float, seconds: float
) -> BurstComparison:
    """Measure bursts on a configuration within about `seconds`.

    Args:
        load_factor: certified load.

    Raises:
        VoidLevelFailure: the load generator would take too many of the server's cores in any burst.
        TrialFailure: the server is stopped.
    """
    workload = without_repeats(evaluator.workload)
    plain = without_cache(config)
    variants = [plain, *_otherwise(plain, workload, load_factor)]
    affordable = (seconds - _PROBE_SECONDS) / len(variants) - _LOADING_SECONDS
    longest = affordable / (len(_HEIGHTS) * _CYCLES * (1 + _QUIET_PER_BURST))
    burst_seconds = min(_LONGEST_BURST_SECONDS, max(_SHORTEST_BURST_SECONDS, longest))
    try:
        sending = _sending_cost(evaluator, plain, workload, load_factor)
        offered = [
            _in_bursts(workload, load_factor, each, burst_seconds) for each in _heights(sending)
        ]
        queues = tuple(
            QueueUnderBursts(
                tuple(_bounds(each)), tuple(_levels(evaluator, each, offered, sending))
            )
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
        sending,
    )


def _sending_cost(
    evaluator: LiveEvaluator, config: ServingConfig, workload: Workload, load_factor: float
) -> SendingCost | None:
    """Measure the cost of sending at the certified rate; None where the server has its own cores.

    The configuration stays served.
    """
    served = _serve(evaluator, config)
    with evaluator.levels.for_workload(workload).on(served, config) as run:
        level = run(_plan(evaluator, workload, load_factor, _PROBE_SECONDS))
    use = level.machine
    if evaluator.levels.slot.separated or use is None or use.server_cpu_seconds is None:
        return None
    certified = load_factor * workload.demand_per_second
    return SendingCost(use.cores, _request_cpu_seconds(level), certified)


def _request_cpu_seconds(level: LoadLevel) -> float:
    return level.client.cpu_seconds / sent_requests(level)


def _heights(sending: SendingCost | None) -> tuple[float, ...]:
    """Return the heights of the bursts, which leave the server most of its cores.

    Raises:
        VoidLevelFailure: no burst does.
    """
    if sending is None:
        return _HEIGHTS
    highest = math.floor(sending.highest(_PLANNED_SHARE) * 10) / 10
    if highest < _LOWEST_HEIGHT:
        raise VoidLevelFailure(
            f"a burst of {_LOWEST_HEIGHT:g} times the certified "
            f"{sending.certified_per_second:.0f} requests/s would leave the server "
            f"{sending.cores_left(_LOWEST_HEIGHT):.1f} of {sending.cores} cores, because the load "
            "generator runs on them too: give it cores of its own"
        )
    return tuple(dict.fromkeys(min(each, highest) for each in _HEIGHTS))


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
    # A level begins with the quiet time, so that none of its bursts is in two parts.
    arrivals = Bursts(height / mean, burst_seconds, cycle_seconds, begin_seconds=burst_seconds)
    streams = tuple(replace(stream, arrivals=arrivals) for stream in workload.streams)
    return _Bursts(
        height,
        replace(workload, streams=streams),
        load_factor * mean,
        _CYCLES * cycle_seconds,
    )


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
    evaluator: LiveEvaluator,
    config: ServingConfig,
    offered: Sequence[_Bursts],
    sending: SendingCost | None,
) -> Iterator[BurstLevel]:
    """Serve a configuration and yield a level of each height."""
    served = _serve(evaluator, config)
    for bursts in offered:
        plan = _plan(evaluator, bursts.workload, bursts.load_factor, bursts.seconds)
        with evaluator.levels.for_workload(bursts.workload).on(served, config) as run:
            yield _burst_level(bursts.height, run(plan), sending)
    evaluator.session.retire()


def _serve(evaluator: LiveEvaluator, config: ServingConfig) -> ServedConfiguration:
    evaluator.session.retire(wait=True)
    return evaluator.session.serve(config, files_of(config, evaluator.files))


def _plan(
    evaluator: LiveEvaluator, workload: Workload, load_factor: float, seconds: float
) -> LevelPlan:
    return LevelPlan(
        OpenLoop(load_factor),
        0.0,
        seconds,
        evaluator.protocols.search.check_timeout_seconds,
        longest_lag_ms=longest_lag_ms(workload.shortest_limit_ms),
        # The beginning of a burst must not be taken for warm-up.
        cold=True,
    )


def _burst_level(height: float, level: LoadLevel, sending: SendingCost | None) -> BurstLevel:
    sent = sent_requests(level)
    good = sum(stream.within_limit or 0 for stream in level.streams)
    return BurstLevel(
        height=height,
        sent=sent,
        errors=level.errors,
        first_error=first_error(level),
        within_limit=good / sent,
        rejected=level.rejected / sent,
        p50_ms=level.latency_ms(50),
        p95_ms=level.latency_ms(95),
        goodput_per_second=good / level.seconds,
        void=why_void(level) or _why_starved(height, level, sending),
        warnings=level.warnings,
    )


def _why_starved(height: float, level: LoadLevel, sending: SendingCost | None) -> str | None:
    """Return why the server had too few cores in the bursts of a level, None where it had them."""
    if sending is None:
        return None
    in_bursts = replace(sending, request_cpu_seconds=_request_cpu_seconds(level)).cores_left(height)
    if in_bursts >= _LEAST_SHARE * sending.cores_left(1.0):
        return None
    return (
        f"the load generator left the server {max(0.0, in_bursts):.1f} of {sending.cores} cores in "
        f"the bursts, and {sending.cores_left(1.0):.1f} at the certified rate: give it cores of "
        "its own"
    )

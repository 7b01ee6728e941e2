"""Load tests with a growing number of users.

The published benchmark is an "advanced" job of SageMaker Inference Recommender: 2 users, 2 more per
minute, for 25 minutes at most; it ends when the demand is served or a latency threshold is passed.
Its result is a closed-loop rate; independent arrivals of the same rate would wait longer.
"""

from __future__ import annotations

import math

from optimizer.errors import LoadTestFailure
from optimizer.load.capacity import RunLevel
from optimizer.load.level_plan import LevelPlan
from optimizer.load.levels import refuse_if_all_failed
from optimizer.load.stopping import StoppingConditions
from optimizer.load.user_load import Phase, UserLoad
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel, Measurement
from optimizer.measurement.level_checks import failed_requests
from optimizer.measurement.trial_record import Outcome
from optimizer.workload.streams import Workload

PUBLISHED_RAMP = UserLoad((Phase(2, 2.0, 1500.0),))


def find_by_ramp(run: RunLevel, workload: Workload, timeout_seconds: float) -> Evaluation:
    """Find the largest rate within the limits while the number of users grows.

    Raises:
        LoadTestFailure: when every request failed.
    """
    limits = tuple(stream.limit for stream in workload.streams)
    conditions = StoppingConditions(math.ceil(60 * workload.demand_per_second), limits)
    return find_in_user_load(run, workload, PUBLISHED_RAMP, conditions, timeout_seconds)


def find_in_user_load(
    run: RunLevel,
    workload: Workload,
    load: UserLoad,
    conditions: StoppingConditions,
    timeout_seconds: float,
) -> Evaluation:
    """Find the largest rate within the latency thresholds of a user load.

    Args:
        conditions: end the load; they have a latency threshold.

    Raises:
        LoadTestFailure: when every request failed.
    """
    level = run(LevelPlan(load, 0.0, load.seconds, timeout_seconds, stop=conditions))
    limit_ms = min(limit.latency_ms for limit in conditions.model_latency_thresholds)
    missed = why_user_load_missed(level, limit_ms)
    per_second, p95_ms = largest_rate_within(level, limit_ms)
    factor = per_second / workload.demand_per_second if missed is None else 0.0
    outcome: Outcome = "ok" if factor > 0 else "infeasible"
    ended = missed or level.ended
    measurement = Measurement((level,), factor, factor, None, workload.demand_per_second, ended)
    sent = sum(stream.sent for stream in level.streams)
    overshoot = max(p95_ms / limit_ms - 1, level.errors / sent or -1.0)
    return Evaluation(outcome, ended, measurement, overshoot)


def why_user_load_missed(level: LoadLevel, limit_ms: float) -> str | None:
    """Return why a user load met the limit at no time, or failed; None where it met it.

    Raises:
        LoadTestFailure: when every request failed.
    """
    refuse_if_all_failed(level)
    if (failed := failed_requests(level)) is not None:
        return failed
    _, p95_ms = largest_rate_within(level, limit_ms)
    if p95_ms > limit_ms:
        return f"p95 was at least {p95_ms:.1f} ms, over the limit of {limit_ms:g} ms"
    return None


def largest_rate_within(level: LoadLevel, limit_ms: float) -> tuple[float, float]:
    """Return the largest rate of a slice whose p95 is within the limit, and that p95 in ms.

    Where no slice is within the limit, return those of the slice with the least p95.

    Raises:
        LoadTestFailure: when nothing was answered.
    """
    each = level.seconds / len(level.slices)
    slices = [(s.completed / each, s.p95_ms) for s in level.slices if s.p95_ms is not None]
    if not slices:
        raise LoadTestFailure("no request of the user load was answered in time")
    within = [rate_and_p95 for rate_and_p95 in slices if rate_and_p95[1] <= limit_ms]
    return max(within) if within else min(slices, key=lambda rate_and_p95: rate_and_p95[1])

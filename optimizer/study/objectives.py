"""What the study minimises: the cost within each of its latency limits."""

from __future__ import annotations

from collections.abc import Sequence

from optimizer.measurement.cost import usd_per_million
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import floor_per_second
from optimizer.study.context import StudyContext

COST = "usd_per_million_at_capacity"


def objective_names(extra_limits_ms: Sequence[float]) -> list[str]:
    """Names of the objectives: within the space file's limit, then within each further one."""
    return [COST, *(f"{COST}.{limit_ms:g}ms" for limit_ms in extra_limits_ms)]


def told_values(evaluation: Evaluation, context: StudyContext) -> tuple[float, ...]:
    """Dollars per million within each limit, in the order of the names; empty after a failure.

    Where no load met the limit: at saturation, beside a constraint that says so. In a study of
    several limits no constraint can say it of one alone, and it is at the floor load, as dear as
    anything within that limit can be.
    """
    if evaluation.measurement is None or evaluation.limit_overshoot is None:
        return ()
    saturated = evaluation.saturation_per_second or 0.0
    missed = floor_per_second(saturated) if context.extra_limits_ms else saturated
    found = [evaluation.measurement, *(each.measurement for each in evaluation.extra_limits)]
    rates = [each.capacity_per_second if each.load_factor > 0 else missed for each in found]
    hourly, each = context.price.usd_per_hour, context.demand.inferences_per_request
    if min(rates) <= 0:
        return ()
    return tuple(usd_per_million(hourly, rate, each) for rate in rates)

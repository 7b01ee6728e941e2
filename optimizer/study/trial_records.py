"""How trial records are made from evaluations, and what Optuna is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.cost import usd_per_million
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import floor_per_second
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.context import StudyContext
from optimizer.study.history import scored

COST = "usd_per_million_at_capacity"


def objective_names(extra_limits_ms: Sequence[float]) -> list[str]:
    """Return one objective for the space file's limit, and one for each extra limit."""
    return [COST, *(f"{COST}.{limit_ms:g}ms" for limit_ms in extra_limits_ms)]


def measured_record(
    number: int,
    config: ServingConfig,
    evaluation: Evaluation,
    context: StudyContext,
    attempt: int = 1,
) -> TrialRecord:
    """Return the record of a measurement that is not a proposal of the study."""
    measurement, overshoot = evaluation.measurement, evaluation.limit_overshoot
    constraints: tuple[tuple[str, float], ...] = ()
    if overshoot is not None:
        # A configuration that misses one of several limits may be the best within another.
        least = min([overshoot, *(each.excess for each in evaluation.extra_limits)])
        constraints = tuple((name, least) for name in context.limit_names)
    return TrialRecord(
        number=number,
        params=(),
        config=config,
        outcome=evaluation.outcome,
        reason=evaluation.reason,
        machine=context.machine,
        measurement=measurement,
        score=None if measurement is None else scored(measurement, context.price, context.demand),
        constraints=constraints,
        failure=evaluation.failure,
        seconds=evaluation.seconds,
        attempt=attempt,
        further=evaluation.extra_limits,
    )


def proposed_record(
    number: int,
    params: tuple[tuple[str, int | float | str], ...],
    config: ServingConfig,
    evaluation: Evaluation,
    context: StudyContext,
    attempt: int,
    total_seconds: float,
) -> TrialRecord:
    """Return the record of a proposal, with the values that Optuna is told."""
    values = _objective_values(evaluation, context)
    return replace(
        measured_record(number, config, evaluation, context, attempt),
        params=params,
        told_value=values[0] if values else None,
        told_further=values[1:],
        seconds=replace(evaluation.seconds, total=total_seconds),
    )


def confirmation_record(
    number: int,
    config: ServingConfig,
    evaluation: Evaluation,
    context: StudyContext,
    attempt: int,
) -> TrialRecord:
    """Return the record of one round of the confirm phase.

    It has no score: the cost follows from all rounds of a configuration together.
    """
    return replace(measured_record(number, config, evaluation, context, attempt), score=None)


def wrong_answers_record(record: TrialRecord, reason: str) -> TrialRecord:
    """Return a record whose configuration turned out to answer wrongly.

    Its load levels stay as they were measured; costs, constraints and capacities within extra
    limits are dropped, because no load that it served counts.
    """
    return replace(
        record,
        outcome="infeasible",
        reason=f"wrong answers: {reason}",
        score=None,
        told_value=None,
        constraints=(),
        further=(),
        told_further=(),
    )


def has_wrong_answers(record: TrialRecord) -> bool:
    """Whether a record is infeasible for its answers: it met the latency limits at some load."""
    measurement = record.measurement
    return (
        record.outcome == "infeasible" and measurement is not None and measurement.load_factor > 0
    )


def _objective_values(evaluation: Evaluation, context: StudyContext) -> tuple[float, ...]:
    """Return dollars per million within each limit; empty after a failure.

    Where no load met the only limit, the value is the cost at saturation, and a constraint says
    so. With several limits a constraint cannot name one of them; the value is then the cost at the
    floor load, the highest that a configuration within the limit could have.
    """
    if evaluation.measurement is None or evaluation.limit_overshoot is None:
        return ()
    saturation = evaluation.saturation_per_second or 0.0
    infeasible_rate = floor_per_second(saturation) if context.extra_limits_ms else saturation
    measurements = [evaluation.measurement, *(m.measurement for m in evaluation.extra_limits)]
    rates = [m.capacity_per_second if m.load_factor > 0 else infeasible_rate for m in measurements]
    hourly, inferences = context.price.usd_per_hour, context.demand.inferences_per_request
    if min(rates) <= 0:
        return ()
    return tuple(usd_per_million(hourly, rate, inferences) for rate in rates)

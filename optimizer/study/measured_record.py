"""From an evaluation to the record that is kept of it. Pure."""

from __future__ import annotations

from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.study.context import StudyContext
from optimizer.study.history import scored


def measured_record(
    number: int,
    config: ServingConfig,
    evaluation: Evaluation,
    context: StudyContext,
    attempt: int = 1,
) -> TrialRecord:
    """The record of a measurement that no proposal of the study's asked for."""
    measurement, excess = evaluation.measurement, evaluation.limit_overshoot
    if excess is not None:
        # What misses one of several limits may be the best within another.
        excess = min([excess, *(each.excess for each in evaluation.extra_limits)])
    told = () if excess is None else tuple((name, excess) for name in context.limit_names)
    return TrialRecord(
        number=number,
        params=(),
        config=config,
        outcome=evaluation.outcome,
        reason=evaluation.reason,
        machine=context.machine,
        measurement=measurement,
        score=None if measurement is None else scored(measurement, context.price, context.demand),
        constraints=told,
        failure=evaluation.failure,
        seconds=evaluation.seconds,
        attempt=attempt,
        further=evaluation.extra_limits,
    )

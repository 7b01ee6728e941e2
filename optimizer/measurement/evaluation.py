"""The result of measuring one configuration."""

from __future__ import annotations

from dataclasses import dataclass, field

from optimizer.measurement.level import ExtraLimit, Measurement
from optimizer.measurement.trial_record import Failure, Outcome, Seconds


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a capacity search, and what the evaluator adds to it.

    Attributes:
        outcome: "ok" where `measurement` certifies a load, "infeasible" where even the floor load
            missed the limits, "bounded" where only saturation was measured and the capacity is at
            most `measurement.load_factor_high`, "failed" where there is no measurement.
        reason: why the capacity search ended, or why the evaluation failed.
        limit_overshoot: latency at the limit's percentile relative to the limit, minus 1, or the
            share of failed requests if that is larger; of the level at the capacity (<= 0) or of
            the floor load (> 0). 0 where "bounded", None where "failed".
        extra_limits: capacities within extra latency limits.
    """

    outcome: Outcome
    reason: str
    measurement: Measurement | None = None
    limit_overshoot: float | None = None
    extra_limits: tuple[ExtraLimit, ...] = ()
    failure: Failure | None = None
    seconds: Seconds = field(default_factory=Seconds)

    @property
    def valid_measurement(self) -> Measurement:
        """The measurement of an evaluation that did not fail."""
        assert self.measurement is not None, self.reason
        return self.measurement

    @property
    def saturation_per_second(self) -> float | None:
        """Request rate under saturation, None where that was not measured."""
        levels = self.measurement.levels if self.measurement is not None else ()
        rates = (level.achieved_per_second for level in levels if level.kind == "saturation")
        return next(rates, None)

"""The result of measuring one configuration. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from optimizer.measurement.level import FurtherLimit, Measurement
from optimizer.measurement.trial_record import Failure, Outcome, Seconds


@dataclass(frozen=True)
class Evaluation:
    """What measuring one configuration gave.

    Attributes:
        excess: how far the level that decided was over the limit, relative to it; <= 0 met it.
            0 for `bounded`, whose latency was not measured; None for `failed`.
        saturation_per_second: rate under saturation, None where it was not measured.
        further: what was found within further limits.
    """

    outcome: Outcome
    reason: str
    measurement: Measurement | None = None
    excess: float | None = None
    saturation_per_second: float | None = None
    failure: Failure | None = None
    seconds: Seconds = field(default_factory=Seconds)
    further: tuple[FurtherLimit, ...] = ()

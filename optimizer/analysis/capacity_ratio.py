"""The ratio of two capacities that were measured on different machines or at different times.

Within a study, finalists are measured in turn, so that the drift of the machine cancels (see
`optimizer.study.confidence`). Between studies it does not: the interval of the ratio combines the
uncertainty of both capacities (Welch 1947, on logarithms). Differences of a machine from one day to
the next are not in it; the drift that a study recorded is reported beside the ratio.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import special

from optimizer.measurement.estimates import CONFIDENCE, NORMAL_QUANTILE
from optimizer.measurement.level import Measurement
from optimizer.study.confidence import PRIOR_ROUNDS, log_capacity

_NORMAL_FREEDOM = 1e6
"""Degrees of freedom from which Student's distribution is the normal one."""

Verdict = Literal["apart", "within the pace", "not apart", "no interval"]
"""Whether two capacities can be told apart at `CONFIDENCE`; "within the pace" where they could, had
the machines not changed their own pace by as much while they were studied."""


@dataclass(frozen=True)
class Estimate:
    """A capacity as far as levels show it, without what they cannot show.

    Attributes:
        log: of requests a second.
        sd: standard error of `log`; None where no load was too much, so that nothing bounds it.
        freedom: degrees of freedom of `sd`.
    """

    log: float
    sd: float | None
    freedom: float = _NORMAL_FREEDOM

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return math.exp(self.log)

    @property
    def interval(self) -> tuple[float, float] | None:
        """At `CONFIDENCE`, requests a second."""
        if self.sd is None:
            return None
        half = _quantile(self.freedom) * self.sd
        return math.exp(self.log - half), math.exp(self.log + half)


def estimate_of_trial(measurement: Measurement) -> Estimate:
    """By the capacity and the interval of one trial that met the limits."""
    low, high = measurement.capacity_low_per_second, measurement.capacity_high_per_second
    log = math.log(measurement.capacity_per_second)
    if low <= 0 or high is None:
        return Estimate(log, None)
    return Estimate(log, math.log(high / low) / 2 / NORMAL_QUANTILE)


def estimate_of_rounds(rounds: Sequence[Measurement]) -> Estimate:
    """By all rounds of the confirm phase, of which there is one at least.

    The standard error comes from the levels' own intervals and from how much the rounds disagree,
    together, as in `optimizer.study.confidence`; rounds that happen to agree make it no smaller.
    """
    capacities = [(*log_capacity(each), each.demand_per_second) for each in rounds]
    logs = np.array([load_factor + math.log(demand) for load_factor, _, demand in capacities])
    own = float(np.mean([sd**2 for _, sd, _ in capacities]))
    freedom = PRIOR_ROUNDS + len(logs) - 1
    shown = (PRIOR_ROUNDS * own + float(((logs - logs.mean()) ** 2).sum())) / freedom
    return Estimate(float(logs.mean()), math.sqrt(max(own, shown) / len(logs)), freedom)


@dataclass(frozen=True)
class Ratio:
    """One capacity relative to another.

    Attributes:
        value: above 1 where it is larger.
        low, high: interval at `CONFIDENCE`, from each capacity's own; None where one has none.
        drift: by which share a machine drifted while it was studied, at most; 0 where
            no study has seen its machine do so.
    """

    value: float
    low: float | None
    high: float | None
    drift: float

    @property
    def verdict(self) -> Verdict:
        """Whether the two can be told apart."""
        if self.low is None or self.high is None:
            return "no interval"
        if self.low <= 1 <= self.high:
            return "not apart"
        changed = 1 + self.drift
        return "within the pace" if self.low / changed <= 1 <= self.high * changed else "apart"


def ratio_of(own: Estimate, first: Estimate, drift: float) -> Ratio:
    """`own` relative to `first`; the two were measured independently."""
    difference = own.log - first.log
    value = math.exp(difference)
    if own.sd is None or first.sd is None:
        return Ratio(value, None, None, drift)
    error = math.hypot(own.sd, first.sd)
    half = _quantile(_freedom(own.sd, own.freedom, first.sd, first.freedom)) * error
    return Ratio(value, math.exp(difference - half), math.exp(difference + half), drift)


def _freedom(sd: float, freedom: float, other_sd: float, other_freedom: float) -> float:
    """Welch's, of the difference of two means; infinitely sure ones have no say."""
    variance, other = sd**2, other_sd**2
    spread = variance**2 / freedom + other**2 / other_freedom
    return (variance + other) ** 2 / spread if spread > 0 else _NORMAL_FREEDOM


def _quantile(freedom: float) -> float:
    return float(special.stdtrit(freedom, (1 + CONFIDENCE) / 2))

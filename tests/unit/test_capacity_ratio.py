from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from optimizer.analysis.capacity_ratio import (
    Estimate,
    Ratio,
    estimate_of_rounds,
    estimate_of_trial,
    ratio_of,
)
from tests.unit.studies import measured


def test_a_trials_estimate_is_its_capacity_with_its_interval() -> None:
    found = estimate_of_trial(measured(100.0, high=104.0))
    assert found.per_second == pytest.approx(100.0)
    assert found.interval is not None
    low, high = found.interval
    assert high / low == pytest.approx(1.04, rel=1e-4), "as wide as the trial's own"


def test_without_an_upper_bound_there_is_no_interval() -> None:
    open_above = measured(100.0)
    unbounded = estimate_of_trial(replace(open_above, load_factor_high=None))
    assert unbounded.interval is None
    ratio = ratio_of(unbounded, Estimate(math.log(50.0), 0.01), drift=0.0)
    assert ratio.value == pytest.approx(2.0)
    assert ratio.verdict == "no interval"


def test_rounds_that_disagree_are_less_sure() -> None:
    agree = estimate_of_rounds([measured(100.0), measured(100.0)])
    disagree = estimate_of_rounds([measured(90.0), measured(110.0)])
    assert agree.sd is not None
    assert disagree.sd is not None
    assert disagree.sd > 2 * agree.sd
    one = estimate_of_rounds([measured(100.0)])
    assert one.sd == pytest.approx(math.sqrt(2) * agree.sd)
    assert one.freedom < agree.freedom


def test_rounds_count_in_requests_a_second_whatever_the_demand_was() -> None:
    little, much = (estimate_of_rounds([measured(100.0, demand=d)]) for d in (50.0, 5000.0))
    assert little.per_second == pytest.approx(much.per_second, rel=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "pace", "verdict"),
    [
        (1.05, 1.20, 0.0, "apart"),
        (0.80, 0.95, 0.0, "apart"),
        (0.95, 1.20, 0.0, "not apart"),
        (1.05, 1.20, 0.08, "within the pace"),
        (0.80, 0.95, 0.08, "within the pace"),
        (1.10, 1.20, 0.08, "apart"),
    ],
)
def test_a_change_of_pace_stands_against_a_difference(
    low: float, high: float, pace: float, verdict: str
) -> None:
    assert Ratio(math.sqrt(low * high), low, high, pace).verdict == verdict


def test_the_interval_of_the_ratio_holds_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    truth, held, sds, freedom = math.log(1.2), 0, (0.02, 0.06), 5
    for _ in range(2000):
        logs = rng.normal([math.log(120.0), math.log(100.0)], sds)
        shown = [sd * math.sqrt(rng.chisquare(freedom) / freedom) for sd in sds]
        own, first = (Estimate(m, sd, freedom) for m, sd in zip(logs, shown, strict=True))
        ratio = ratio_of(own, first, drift=0.0)
        assert ratio.low is not None
        assert ratio.high is not None
        held += ratio.low <= math.exp(truth) <= ratio.high
    assert 0.93 <= held / 2000 <= 0.975

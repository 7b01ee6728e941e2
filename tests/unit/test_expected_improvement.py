from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Seconds, TrialRecord
from optimizer.search.surrogate.expected_improvement import Effort, improvement
from tests.unit.studies import bounded, four_points, infeasible, ok, record_of

PROTOCOL = CapacityProtocol(
    saturation_seconds=7, warmup_seconds=1, load_seconds=20, load_requests=1000
)
SPACE = four_points()


@given(mean=st.floats(-2, 2), sd=st.floats(0.01, 1), best=st.floats(-2, 2))
def test_the_closed_form_is_what_draws_give(mean: float, sd: float, best: float) -> None:
    drawn = np.exp(mean + sd * np.random.default_rng(1).standard_normal(40_000))
    saved = np.maximum(0, 1 - drawn / np.exp(best))
    [gained] = improvement(np.array([mean]), np.array([sd]), best)
    assert gained == pytest.approx(saved.mean(), abs=0.01)


def test_what_is_surely_dearer_gains_nothing_and_what_is_surely_cheaper_the_difference() -> None:
    means, sds = np.log([2.0, 0.5, 1.0]), np.full(3, 1e-6)
    assert improvement(means, sds, 0.0) == pytest.approx([0, 0.5, 0], abs=1e-5)


def seconds_of(effort: Effort, rate: float, *, bounded: float = 0.0, restart: float = 0.0) -> float:
    [found] = effort.seconds(np.array([rate]), np.array([bounded]), np.array([restart]))
    return float(found)


def test_before_any_trial_the_protocol_says_how_long_one_takes() -> None:
    effort = Effort(PROTOCOL)
    assert seconds_of(effort, 500) == pytest.approx(5 + 20)
    assert seconds_of(effort, 10) == pytest.approx(5 + 100)
    assert seconds_of(effort, 10, bounded=1.0) == pytest.approx(5 + 8)
    assert seconds_of(effort, 10, bounded=0.5) == pytest.approx(5 + (100 + 8) / 2)
    assert seconds_of(effort, 500, restart=1.0) == pytest.approx(5 + 20 + 3)


def took(number: int, evaluation: Evaluation, measuring: float, serving: float) -> TrialRecord:
    record = record_of(number, SPACE.config(SPACE.baseline), evaluation)
    return replace(record, seconds=Seconds(measuring=measuring, serving=serving))


def test_trials_say_how_long_the_next_ones_take() -> None:
    records = [
        took(0, ok(1000), 30, 2),
        took(1, infeasible(1000), 30, 2),
        took(2, ok(10), 143, 9),
        took(3, bounded(100), 4, 2),
    ]
    effort = Effort.learnt(PROTOCOL, records)
    assert effort.serving_seconds == 2
    assert effort.whole == pytest.approx(1.5, rel=0.01)
    assert effort.saturated == pytest.approx(0.5)
    assert seconds_of(effort, 1000) == pytest.approx(2 + 30, rel=0.01)
    assert seconds_of(effort, 1000, bounded=1.0) == pytest.approx(2 + 4)

"""Samplers that learn from some of the trials: which, and what they propose by them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import optuna
import pytest
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState, create_trial

from optimizer.search.bounded_sampler import BoundedSampler, selected

X: dict[str, BaseDistribution] = {"x": IntDistribution(0, 1000)}


def trial(x: int, value: float, over_the_limit: float = -1.0) -> FrozenTrial:
    return create_trial(
        value=value, params={"x": x}, distributions=X, constraints={"latency": over_the_limit}
    )


def study_of(trials: Sequence[FrozenTrial], sampler: BaseSampler | None = None) -> optuna.Study:
    study = optuna.create_study(sampler=sampler)
    study.add_trials(trials)
    return study


def xs(trials: Sequence[FrozenTrial]) -> list[int]:
    return [each.params["x"] for each in trials if each.params]


def test_few_trials_are_all_learnt_from() -> None:
    trials = study_of([trial(x, float(x)) for x in range(10)]).trials
    assert selected(trials, 10) == trials


def test_of_many_the_best_half_and_a_spread_of_the_others_are_learnt_from() -> None:
    trials = study_of([trial(x, float(x)) for x in range(100)]).trials
    assert xs(selected(trials, 20)) == [*range(10), *range(10, 100, 9)]


def test_what_misses_the_limits_is_worse_than_what_meets_them() -> None:
    trials = [trial(x, float(x), 1.0 if x < 50 else -1.0) for x in range(100)]
    kept = xs(selected(study_of(trials).trials, 20))
    assert {*range(50, 60)} < {*kept}
    assert len([x for x in kept if x < 50]) == 5


def test_failed_trials_stay_in_their_places() -> None:
    trials = [trial(x, float(x)) for x in range(20)]
    trials.insert(3, create_trial(state=TrialState.FAIL))
    kept = selected(study_of(trials).trials, 4)
    assert [each.number for each in kept] == sorted(each.number for each in kept)
    assert any(each.state == TrialState.FAIL for each in kept)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TPESampler(seed=1, n_startup_trials=3),
        pytest.param(lambda: GPSampler(seed=1, n_startup_trials=3), marks=pytest.mark.slow),
    ],
    ids=["tpe", "gp"],
)
@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_a_bounded_sampler_proposes_as_if_the_others_were_not_there(
    make: type[BaseSampler], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optimizer.search.bounded_sampler.selected.__defaults__", (20,))
    trials = [trial(x, math.cos(x / 40)) for x in range(0, 1000, 9)]
    some = selected(study_of(trials).trials, 20)
    of_all = study_of(trials, BoundedSampler(make())).ask(X)
    of_some = study_of(some, make()).ask(X)
    assert of_all.params == of_some.params
    assert of_all.params != study_of(trials, make()).ask(X).params

"""The guided search on real Optuna, with made-up truths and forecasts of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimizer.configuration.model_space import Position
from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.load.capacity import CapacityProtocol
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.surrogate import acquisition as guide_module
from optimizer.search.surrogate.acquisition import AcquisitionPolicy, no_forecast
from optimizer.search.surrogate.assessment import WORTHWHILE
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.search.surrogate.posterior import Posterior, TrialAtRow
from optimizer.simulator.forecast import Forecast
from optimizer.study.events import TrialStarted
from optimizer.study.history import History
from optimizer.study.optuna_study import OptunaStudy
from tests.unit.studies import (
    DEMAND,
    PRICE,
    SETTING,
    FakeEvaluator,
    Search,
    as_fast_as_it_is,
    capacity_of,
    failed,
    four_points,
    infeasible,
    ok,
    open_study,
    policy_of,
    record_of,
    small_space,
    ten_points,
)

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
ROWS = range(len(SPACE))
CONFIGS = [SPACE.config(SPACE.at(row)) for row in ROWS]
TRUTH = np.array([capacity_of(config) for config in CONFIGS])
LIKE = PointFeatures.of(SPACE)


def forecast(log_error: float = 0.1, seed: int = 0) -> Forecast:
    """The truth with an error for each artefact and a rough one."""
    rng = np.random.default_rng(seed)
    off = log_error * rng.standard_normal(LIKE.artifacts.max() + 1)[LIKE.artifacts]
    off += log_error * rng.standard_normal(LIKE.cells.max() + 1)[LIKE.cells]
    capacity = TRUTH * np.exp(off) / DEMAND.requests_per_second
    none = np.zeros(len(SPACE))
    return Forecast(1.05 * capacity, capacity, none - 1.0, none + log_error)


def shuffled(seed: int) -> Forecast:
    """What is right for other points."""
    order = np.random.default_rng(seed).permutation(len(SPACE))
    own = forecast()
    return replace(own, saturation=own.saturation[order], capacity=own.capacity[order])


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path, SPACE, FakeEvaluator(), sampler="guided", forecast=forecast())


def regret(search: Search) -> float:
    """Share of the best capacity that the best trial lacks."""
    return float(1 - max(map(capacity_of, search.evaluator.evaluated)) / TRUTH.max())


@pytest.mark.parametrize("seed", range(2))
def test_a_good_forecast_leads_to_the_optimum_in_a_few_trials(search: Search, seed: int) -> None:
    search = replace(search, forecast=forecast(seed=seed))
    search.run(7)
    assert regret(search) < 0.05


@pytest.mark.parametrize("seed", range(2))
def test_a_wrong_forecast_is_overcome(seed: int) -> None:
    """Random proposals have an even chance of the best cell after 32 of the 63 points."""
    history = History({0: record_of(0, SPACE.config(SPACE.baseline), ok(40))})
    policy = policy_of(SPACE, history, forecast=shuffled(seed))
    for _ in range(16):
        step(policy, history, as_fast_as_it_is)
    best = max(capacity_of(record.config) for record in history.records)
    assert best > TRUTH.max() / 1.05


def test_without_a_forecast_it_learns_from_the_trials(search: Search) -> None:
    search = replace(search, forecast=None)
    search.run(16)
    assert regret(search) < 0.05


def test_no_point_is_proposed_twice_until_all_are_measured(tmp_path: Path) -> None:
    space = small_space(runtime=("openvino",), max_queue_delay_us=(0,), intra_op_threads=(1,))
    history = History({})
    study = open_study(tmp_path, space, sampler="guided", policy=policy_of(space, history))
    for _ in ROWS[: len(space)]:
        proposal = study.ask()
        record = record_of(proposal.number, space.config(proposal.position), ok(100))
        history.add(record)
        study.tell(record)
    assert len({record.config for record in history.records}) == len(space)
    known = study.ask()
    assert history.decided(space.config(known.position)) is not None


def test_a_space_that_is_measured_whole_has_no_gap(search: Search) -> None:
    space = four_points()
    search = replace(search, space=space, forecast=None)
    ended = search.run(100)
    assert (ended.exhausted, ended.regret_bound) == (True, 0.0)


def test_proposals_depend_on_seed_and_history_only(tmp_path: Path) -> None:
    found = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        search = Search(
            tmp_path / name, SPACE, FakeEvaluator(), sampler="guided", forecast=forecast()
        )
        search.run(6)
        found.append(search.evaluator.evaluated)
    assert found[0] == found[1]


def test_a_batch_of_running_trials_differs_and_spreads(tmp_path: Path) -> None:
    history = History({0: record_of(0, SPACE.config(SPACE.baseline), ok(100))})
    policy = policy_of(SPACE, history, forecast=forecast())
    study = open_study(tmp_path, SPACE, sampler="guided", policy=policy)
    positions = [study.ask().position for _ in range(6)]
    assert len(set(positions)) == 6
    rows = [[SPACE.at(row) for row in ROWS].index(position) for position in positions]
    assert len(set(LIKE.cells[rows])) > 3


def guided(answers: dict[int, Evaluation], expected: Forecast | None = None) -> AcquisitionPolicy:
    """A policy after trials of these rows."""
    records = {n: record_of(n, CONFIGS[row], e) for n, (row, e) in enumerate(answers.items())}
    return policy_of(SPACE, History(records), forecast=expected)


def test_beside_many_running_trials_a_fit_serves_for_several_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted = Posterior.fitted
    fits: list[int] = []

    def counted(trials: Sequence[TrialAtRow], *arguments: Any) -> Posterior:
        fits.append(len(trials))
        return fitted(trials, *arguments)

    monkeypatch.setattr(Posterior, "fitted", counted)
    history = History({0: record_of(0, SPACE.config(SPACE.baseline), ok(50))})
    policy = policy_of(SPACE, history, forecast=forecast())
    running, proposed = list[Position](), set[Position]()
    for number in range(1, 29):
        position = policy.propose(running)
        assert position is not None
        # A resumed search proposes the same: what this policy proposed before plays no part.
        if number % 9 == 0:
            fresh = policy_of(SPACE, history, forecast=forecast())
            assert fresh.propose(running) == position
            fits.pop()
        proposed.add(position)
        running.append(position)
        if len(running) > 16:
            config = SPACE.config(running.pop(0))
            history.add(record_of(number, config, as_fast_as_it_is(config)))
    assert len(proposed) == 28
    assert len(history.records) == 13
    assert fits == [1, 0, 4, 8, 12]


def test_what_is_running_counts_as_the_best_that_is_expected() -> None:
    policy = guided({0: ok(100)}, forecast())
    first = policy.propose()
    assert first is not None
    second = policy.propose([first])
    assert second not in (None, first)
    assert policy.propose() == first


def test_first_comes_what_probably_meets_the_limits_and_is_cheap() -> None:
    """Nothing was measured: the cheapest would miss the limits."""
    own = forecast()
    fast = np.quantile(TRUTH, 0.7) < TRUTH
    excess = np.where(fast, 0.5, -1.0)
    proposed = guided({}, replace(own, floor_log_excess=excess)).propose()
    assert proposed is not None
    row = [SPACE.at(row) for row in ROWS].index(proposed)
    assert not fast[row]
    assert own.capacity[row] == own.capacity[~fast].max()


def test_regions_that_miss_the_limits_are_avoided(search: Search) -> None:
    """The forecast thinks that every point is a third within the limit, wherever it is over it."""

    def answer(config: ServingConfig) -> Evaluation:
        batch = config.models[0].max_batch_size
        return infeasible(capacity_of(config), 130.0) if batch > 8 else as_fast_as_it_is(config)

    search.evaluator.answer = answer
    search.forecast = replace(forecast(), floor_log_excess=np.full(len(SPACE), -0.4))
    search.run(14)
    missed = [c for c in search.evaluator.evaluated if c.models[0].max_batch_size > 8]
    assert len(missed) <= 5
    reached = max(capacity_of(c) for c in search.evaluator.evaluated if c not in missed)
    within = [c for c in CONFIGS if c.models[0].max_batch_size <= 8]
    assert reached > max(map(capacity_of, within)) / 1.05


def test_layouts_that_fail_are_given_up(search: Search) -> None:
    def answer(config: ServingConfig) -> Evaluation:
        return failed() if config.models[0].instance_count == 2 else as_fast_as_it_is(config)

    search.evaluator.answer = answer
    search.run(12)
    failures = [c for c in search.evaluator.evaluated if c.models[0].instance_count == 2]
    assert len(failures) <= 6


def test_what_is_larger_than_one_that_ran_out_of_memory_is_not_proposed() -> None:
    large = max(ROWS, key=lambda row: TRUTH[row])
    spec = CONFIGS[large].models[0].artifact
    smallest = next(row for row in ROWS if CONFIGS[row].models[0].artifact == spec)
    records = {
        0: record_of(0, CONFIGS[smallest], failed("no memory", out_of_memory=True)),
        1: record_of(1, SPACE.config(SPACE.baseline), ok(50)),
    }
    history = History(records)
    policy = policy_of(SPACE, history, forecast=forecast())
    for n in range(2, 8):
        position = policy.propose()
        assert position is not None
        config = SPACE.config(position)
        assert history.decided(config) is None
        history.add(record_of(n, config, as_fast_as_it_is(config)))


def gain(policy: AcquisitionPolicy) -> float:
    return float(policy._fit().alone.gain.max())


def step(
    policy: AcquisitionPolicy, history: History, answer: Callable[[ServingConfig], Evaluation]
) -> None:
    position = policy.propose()
    assert position is not None
    config = SPACE.config(position)
    history.add(record_of(len(history.records), config, answer(config)))


def test_the_search_ends_when_little_is_expected_and_the_bound_is_low() -> None:
    history = History({0: record_of(0, SPACE.config(SPACE.baseline), ok(capacity_of(CONFIGS[0])))})
    policy = policy_of(SPACE, history, forecast=forecast())
    while (status := policy.status()).stop_reason is None:
        step(policy, history, as_fast_as_it_is)
    assert gain(policy) < WORTHWHILE
    assert status.stop_reason == "no configuration is expected to save 1% of the best one's cost"
    assert 3 < len(history.records) < 30
    assert status.regret_bound is not None
    assert status.regret_bound < 0.05
    best = max(capacity_of(record.config) for record in history.records)
    assert 1 - best / TRUTH.max() <= status.regret_bound


@pytest.mark.parametrize("seed", range(5))
def test_a_small_space_need_not_be_measured_whole(seed: int) -> None:
    """Ten trials had to follow the best one's, so that all ten points were measured."""
    space, rng = ten_points(), np.random.default_rng(seed)
    configs = [space.config(space.at(row)) for row in range(len(space))]
    truth = np.array([capacity_of(each) for each in configs])
    truth *= np.exp(0.05 * rng.standard_normal(len(space)))
    share, none = truth * np.exp(0.05 * rng.standard_normal(len(space))), np.zeros(len(space))
    share /= DEMAND.requests_per_second
    close = Forecast(1.05 * share, share, none - 1.0, none + 0.05)
    history = History({})
    policy = policy_of(space, history, forecast=close)
    position: Position | None = space.baseline
    while (status := policy.status()).stop_reason is None:
        assert position is not None
        row = space.row_of[position]
        history.add(record_of(len(history.records), configs[row], ok(float(truth[row]))))
        position = policy.propose()
    assert len(history.records) < len(space)
    best = max(truth[configs.index(record.config)] for record in history.records)
    assert status.regret_bound is not None
    assert 1 - best / truth.max() <= status.regret_bound < 0.1


@dataclass(frozen=True)
class FitsWhatItSaw:
    """A forecast that after each trial is right of that point, and of no other than it was."""

    before: Forecast

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        capacity = self.before.capacity.copy()
        for record in trials:
            row = CONFIGS.index(record.config)
            capacity[row] = TRUTH[row] / DEMAND.requests_per_second
        return replace(self.before, saturation=1.05 * capacity, capacity=capacity)

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        return self.after(trials).at(row)


@pytest.mark.parametrize("seed", range(3))
def test_a_forecast_that_learns_is_not_judged_by_what_it_has_learnt_from(seed: int) -> None:
    history = History({0: record_of(0, CONFIGS[0], ok(TRUTH[0]))})
    learning = FitsWhatItSaw(forecast(log_error=0.3, seed=seed))
    policy = AcquisitionPolicy(SPACE, history, learning, SETTING, CapacityProtocol())
    for _ in range(8):
        step(policy, history, as_fast_as_it_is)
    # The same forecast, as if it had been right of every trial from the beginning.
    credulous = policy_of(SPACE, history, forecast=learning.after(history.records))
    assert np.median(policy._fit().alone.log_sd / credulous._fit().alone.log_sd) > 1.1


def test_while_much_is_expected_the_search_goes_on() -> None:
    policy = guided({0: ok(50)}, forecast())
    assert gain(policy) > WORTHWHILE
    assert policy.status().stop_reason is None


def test_before_anything_met_the_limits_nobody_knows_what_is_left() -> None:
    status = guided({0: infeasible(100), 1: failed()}, forecast()).status()
    assert (status.stop_reason, status.regret_bound) == (None, None)


def test_what_is_proposed_is_explained_by_what_is_expected_of_it() -> None:
    policy = guided({0: ok(50)}, forecast())
    position = policy.propose()
    assert position is not None
    expected = policy.explain(position)
    assert expected is not None
    assert expected.why == "the largest expected saving per second"
    true_cost = PRICE.usd_per_hour / 3600 / capacity_of(SPACE.config(position)) * 1e6
    assert expected.low < true_cost < expected.high
    assert expected.low < expected.usd_per_million < expected.high
    assert expected.saving is not None
    assert expected.saving > WORTHWHILE
    assert 0.9 < expected.feasible <= 1
    assert expected.seconds > 0
    other = next(point for row in ROWS if (point := SPACE.at(row)) != position)
    assert policy.explain(other) is None


def test_before_there_is_a_best_no_saving_is_expected() -> None:
    policy = guided({0: infeasible(100)}, forecast())
    position = policy.propose()
    assert position is not None
    expected = policy.explain(position)
    assert expected is not None
    assert expected.saving is None
    assert expected.why == "the cheapest configuration that is likely to meet the limits"


def test_a_search_tells_what_is_expected_of_all_but_what_was_asked_for(search: Search) -> None:
    search.run(4)
    started = [event for event in search.events if isinstance(event, TrialStarted)]
    assert started[0].expected is None
    assert all(event.expected is not None for event in started[1:])


def test_samplers_without_expectations_tell_none(search: Search) -> None:
    random = replace(search, sampler="random")
    random.run(4)
    assert all(e.expected is None for e in random.events if isinstance(e, TrialStarted))


def test_ties_are_measured_last_and_at_most_three_of_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What is measured while the best must stand may be ties too.
    monkeypatch.setattr(guide_module, "_LEAST_TRIALS", 4)
    space = small_space(
        preferred_batch_sizes=("none", "half", "powers"), max_queue_delay_us=(0, 5, 10)
    )
    configs = [space.config(space.at(row)) for row in range(len(space))]
    truth = np.array([capacity_of(config) for config in configs])
    none, share = np.zeros(len(space)), truth / DEMAND.requests_per_second
    exact = Forecast(1.05 * share, share, none - 1.0, none + 0.05)
    history = History({0: record_of(0, configs[0], ok(truth[0]))})
    policy = policy_of(space, history, forecast=exact)
    cells, ties = PointFeatures.of(space).cells, list[int]()
    while policy.status().stop_reason is None:
        settled = policy._converged(policy._fit().alone)
        position = policy.propose()
        assert position is not None
        row = configs.index(space.config(position))
        if settled:
            ties.append(row)
            expected = policy.explain(position)
            assert expected is not None
            assert expected.why == "no significant difference from the best"
        history.add(record_of(len(history.records), configs[row], ok(truth[row])))
    best = cells[int(np.argmax(truth))]
    assert ties
    assert set(cells[ties]) == {best}
    measured = [configs.index(record.config) for record in history.records]
    assert (cells[measured] == best).sum() == 4


def test_a_large_space_is_searched_among_its_likeliest_points_and_some_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guide_module, "_CHEAPEST", 10)
    monkeypatch.setattr(guide_module, "_RANDOM", 5)
    own = forecast()
    assessed = guided({}, own)._fit().alone
    assert len(assessed.rows) == 15
    likeliest = set(np.argsort(-own.capacity, kind="stable")[:10].tolist())
    assert likeliest <= set(assessed.rows.tolist())
    other_seed = policy_of(SPACE, History({}), forecast=own, seed=1)._fit().alone
    assert set(assessed.rows.tolist()) != set(other_seed.rows.tolist())


@dataclass
class Improving:
    """A forecast that changes between two questions."""

    latest: Forecast

    def after(self, trials: Sequence[TrialRecord]) -> Forecast:
        return self.latest

    def of_point(self, trials: Sequence[TrialRecord], row: int) -> Forecast:
        return self.latest.at(row)


def test_a_forecast_that_was_improved_is_used_at_once() -> None:
    forecasts = [forecast(seed=1), shuffled(3)]
    history = History({0: record_of(0, SPACE.config(SPACE.baseline), ok(50))})
    source = Improving(forecasts[0])
    policy = AcquisitionPolicy(SPACE, history, source, SETTING, CapacityProtocol())
    before = policy.propose()
    source.latest = forecasts[1]
    assert policy.propose() == policy_of(SPACE, history, forecast=forecasts[1]).propose() != before


def test_nothing_is_proposed_for_a_study_of_one_point(tmp_path: Path) -> None:
    one = small_space(
        runtime=("openvino",), precision=("fp32",), batching=(False,), max_batch_size=(4,),
        max_queue_delay_us=(0,), instance_count=(1,), intra_op_threads=(1,),
    )  # fmt: skip
    study = open_study(tmp_path, one, sampler="guided")
    assert study.ask().position == one.baseline


def grid_study(folder: Path, space: SearchSpace, seed: int = 0) -> OptunaStudy:
    folder.mkdir(exist_ok=True)
    return open_study(folder, space, sampler="grid", seed=seed)


def test_a_grid_visits_every_valid_point_once_in_the_order_of_its_seed(tmp_path: Path) -> None:
    space = small_space(runtime=("openvino",), max_queue_delay_us=(0,), intra_op_threads=(1,))
    rows = range(len(space))
    study = grid_study(tmp_path / "0", space)
    asked = [study.ask().position for _ in rows]
    assert sorted(asked) == sorted(space.at(row) for row in rows)
    other = grid_study(tmp_path / "1", space, seed=1)
    assert [other.ask().position for _ in rows] != asked
    again = grid_study(tmp_path / "2", space)
    assert [again.ask().position for _ in range(5)] == asked[:5]


def test_no_forecast_expects_the_same_of_every_point() -> None:
    flat = no_forecast(SPACE).forecast
    assert len(set(flat.capacity.tolist())) == 1
    assert (flat.floor_log_excess < 0).all()

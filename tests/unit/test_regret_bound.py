"""The bound on what a configuration may still save, in made-up searches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from optimizer.commands.finished_study import has_certified
from optimizer.commands.run import run_study
from optimizer.commands.run_options import RunOptions
from optimizer.errors import UsageError
from optimizer.files.shipped import shipped
from optimizer.search.finalists import FINALISTS
from optimizer.search.surrogate import regret
from optimizer.search.surrogate.point_features import PointFeatures
from optimizer.simulator.forecast import Forecast
from optimizer.space_file.reader import Budget
from optimizer.study.history import History
from optimizer.study.search_status import SearchStatus, stop_at_regret
from tests.unit.studies import DEMAND, capacity_of, ok, policy_of, record_of, small_space

SPACE = small_space(max_queue_delay_us=(0,))
ROWS = range(len(SPACE))
CONFIGS = [SPACE.config(SPACE.at(row)) for row in ROWS]
TRUTH = np.array([capacity_of(config) for config in CONFIGS])
LIKE = PointFeatures.of(SPACE)
BY_SPEED = sorted(ROWS, key=lambda row: -TRUTH[row])
CELL_OF_BEST = LIKE.cells[BY_SPEED[0]]


def forecast(capacity: NDArray[np.float64]) -> Forecast:
    """Capacities that are thought to be right within 10 %."""
    share, none = capacity / DEMAND.requests_per_second, np.zeros(len(SPACE))
    return Forecast(1.05 * share, share, none - 1.0, none + 0.1)


def history_of(rows: Sequence[int], noise: float = 0.0) -> History:
    """The trials of these rows, every second one too fast and the others too slow."""
    rates = [TRUTH[row] * np.exp(noise * (-1) ** n) for n, row in enumerate(rows)]
    return History({n: record_of(n, CONFIGS[row], ok(rates[n])) for n, row in enumerate(rows)})


def bound_after(history: History, capacity: NDArray[np.float64] = TRUTH) -> float:
    bound = policy_of(SPACE, history, forecast=forecast(capacity)).status().regret_bound
    assert bound is not None
    return bound


def test_the_bound_holds_at_every_trial_of_a_search_with_a_poor_forecast() -> None:
    """After four trials that happened to fit, it was 0 % where the best saved 19 %."""
    rng = np.random.default_rng(8)
    artifact = rng.standard_normal(LIKE.artifacts.max() + 1)[LIKE.artifacts]
    cell = rng.standard_normal(LIKE.cells.max() + 1)[LIKE.cells]
    history, rng = history_of([0]), np.random.default_rng(8)
    policy = policy_of(SPACE, history, forecast=forecast(TRUTH * np.exp(0.4 * (artifact + cell))))
    bounds = []
    for number in range(1, regret.LEAST_TRIALS + 1):
        bound = policy.status().regret_bound
        cheapest = sorted(history.ok, key=lambda record: record.told_value or 0.0)[:FINALISTS]
        true = 1 - max(capacity_of(record.config) for record in cheapest) / TRUTH.max()
        assert bound is None or true <= bound
        bounds.append(bound)
        position = policy.propose()
        assert position is not None
        config = SPACE.config(position)
        rate = capacity_of(config) * np.exp(0.03 * rng.standard_normal())
        history.add(record_of(number, config, ok(float(rate))))
    assert [bound is None for bound in bounds] == [True] * (regret.LEAST_TRIALS - 1) + [False]


def test_an_artefact_without_any_trial_keeps_the_bound_wide() -> None:
    """It is forecast to be as fast as the one that was measured, and is not."""
    best = LIKE.artifacts[BY_SPEED[0]]
    tried = [row for row in BY_SPEED if LIKE.artifacts[row] == best][: regret.LEAST_TRIALS]
    other = next(row for row in BY_SPEED if LIKE.artifacts[row] != best)
    faster = TRUTH * TRUTH.max() / TRUTH[other]
    capacity = np.where(LIKE.artifacts == LIKE.artifacts[other], faster, TRUTH)
    wide = bound_after(history_of(tried), capacity)
    narrow = bound_after(history_of([*tried, other]), capacity)
    assert wide > 0.1
    assert narrow < wide / 2


def test_a_space_whose_best_points_are_measured_leaves_the_resolution_of_a_capacity() -> None:
    assert bound_after(history_of(BY_SPEED[:12])) == regret.RESOLUTION


def test_the_bound_holds_where_the_trial_of_the_best_configuration_was_unlucky() -> None:
    """It was measured 12 % too slow, as in one trial of ten of the recorded tables."""
    best, rest = BY_SPEED[0], [row for row in BY_SPEED if LIKE.cells[row] != CELL_OF_BEST]
    truth = TRUTH**0.2
    truth[LIKE.cells == CELL_OF_BEST] *= 1.05
    errors = {row: 0.04 * (-1) ** n for n, row in enumerate(rest[:11], 1)} | {best: -0.12}
    rates = {row: float(truth[row] * np.exp(error)) for row, error in errors.items()}
    records = [record_of(n, CONFIGS[row], ok(rate)) for n, (row, rate) in enumerate(rates.items())]
    finalists = sorted(rates, key=lambda row: -rates[row])[:FINALISTS]
    true = 1 - truth[finalists].max() / truth.max()
    assert 0.03 < true <= bound_after(History(dict(enumerate(records))), truth)


def test_a_stated_regret_alone_ends_the_search() -> None:
    told = [SearchStatus(), SearchStatus("settled", 0.2), SearchStatus(None, 0.03)]
    answers = iter(told)
    advise = stop_at_regret(lambda: next(answers), 3)
    assert [advise() for _ in told] == [
        SearchStatus(),
        SearchStatus(None, 0.2),
        SearchStatus("no configuration is more than 3% cheaper than the best one (95% confidence)",
                     0.03),
    ]  # fmt: skip


def test_a_sampler_without_a_model_of_the_cost_has_no_regret_to_end_by(tmp_path: Path) -> None:
    options = RunOptions(
        shipped("search_spaces") / "quickstart.yaml", sampler="tpe", regret_percent=3.0,
        results=tmp_path,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"--regret: needs --sampler guided"):
        run_study(options, lambda _: None)


@pytest.mark.parametrize(
    ("percent", "bound", "certified"),
    [(None, 0.2, True), (5.0, 0.05, True), (5.0, 0.06, False), (5.0, None, False)],
)
def test_a_finished_study_goes_on_for_a_lower_regret(
    percent: float | None, bound: float | None, certified: bool
) -> None:
    assert has_certified(bound, Budget(60, 3600.0, percent)) is certified

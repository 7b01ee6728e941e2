"""A study that minimises the cost within several latency limits, without a server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import optuna
import pytest
from click.testing import CliRunner
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console

from optimizer.analysis.latency_curve import capacity_within, undominated
from optimizer.analysis.measured_configurations import measured_configurations
from optimizer.analysis.pareto_front import pareto_front
from optimizer.analysis.run_summary import LoadRuns
from optimizer.analysis.summary import ParetoEntry
from optimizer.cli import commands
from optimizer.cli.terminal import print_table
from optimizer.commands.run import run_study
from optimizer.commands.run_context import require_same_space
from optimizer.commands.run_options import RunOptions
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import SpaceChangedError, UsageError
from optimizer.files.shipped import shipped
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import ExtraLimit, Measurement
from optimizer.report.study_outcome import front_table
from optimizer.search.samplers import SAMPLERS
from optimizer.study.directory import StudyDirectory
from optimizer.study.event_text import trial_text
from optimizer.study.warm_start import carried_over
from tests.unit.studies import (
    DEMAND,
    LIMIT_MS,
    PRICE,
    SETTING,
    FakeEvaluator,
    Search,
    capacity_of,
    failed,
    four_points,
    infeasible,
    level,
    ok,
    record_of,
    small_space,
)
from tests.unit.tables import MACHINE, WORKLOAD
from tests.unit.test_wiring import SPACE as QUICKSTART

pytestmark = pytest.mark.usefixtures("fast_disk")
SHORT_MS, LONG_MS = 50.0, 300.0
SEVERAL = replace(SETTING, extra_limits_ms=(SHORT_MS, LONG_MS))
SELF_TAUGHT = [
    pytest.param(name, marks=pytest.mark.slow) if name == "gp" else name
    for name in sorted(set(SAMPLERS) - {"guided"})
]
NAMES = [
    "usd_per_million_at_capacity",
    "usd_per_million_at_capacity.50ms",
    "usd_per_million_at_capacity.300ms",
]


def within(limit_ms: float, capacity: float, excess: float = -0.1) -> ExtraLimit:
    """What was found by one level more."""
    load = capacity / DEMAND.requests_per_second
    levels = (level(load or 0.1, 0.9 * limit_ms),)
    measurement = Measurement(levels, load, load, load, DEMAND.requests_per_second, "found")
    return ExtraLimit(limit_ms, measurement, excess)


def in_proportion(config: ServingConfig) -> Evaluation:
    """Small batches lose little within the short limit, large ones gain within the long one."""
    at, size = capacity_of(config), config.models[0].max_batch_size
    short = within(SHORT_MS, at / size) if size <= 8 else within(SHORT_MS, 0.0, 0.4)
    return replace(ok(at), extra_limits=(short, within(LONG_MS, 1.01 * at)))


def usd(rate: float) -> float:
    return PRICE.usd_per_hour / (rate * 3600) * 1e6


@pytest.fixture
def search(tmp_path: Path) -> Search:
    evaluator = FakeEvaluator(in_proportion)
    return Search(tmp_path, four_points(), evaluator, sampler="grid", context=SEVERAL)


def study_in(folder: Path) -> optuna.Study:
    """What another process reads from the journal, by Optuna's own means."""
    backend = optuna.storages.journal.JournalFileBackend(str(StudyDirectory(folder).journal))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="test", storage=storage)


def trials_of(search: Search) -> list[FrozenTrial]:
    return study_in(search.folder).trials


def test_every_limit_is_an_objective_of_its_own(search: Search) -> None:
    search.run(3)
    study = study_in(search.folder)
    assert study.directions == [StudyDirection.MINIMIZE] * 3
    assert study.metric_names == NAMES
    for record, trial in zip(search.records, study.trials, strict=True):
        at = capacity_of(record.config)
        size = record.config.models[0].max_batch_size
        assert trial.values == pytest.approx([usd(at), usd(at / size), usd(1.01 * at)])
        assert trial.values == [record.told_value, *record.told_further]
        assert [each.limit_ms for each in record.further] == [SHORT_MS, LONG_MS]


def test_nothing_is_bounded_by_what_is_best_within_one_limit(search: Search) -> None:
    search.run(4)
    assert search.evaluator.bounds == [None] * 4


def test_what_misses_a_further_limit_is_told_the_floor_load_and_breaks_no_constraint(
    search: Search,
) -> None:
    missed = replace(ok(200.0), extra_limits=(within(SHORT_MS, 0.0, 0.7), within(LONG_MS, 210.0)))
    search.evaluator.answer = lambda _: missed
    search.run(1)
    [trial] = trials_of(search)
    floor = 0.05 * 1.05 * 200.0
    assert trial.values == pytest.approx([usd(200.0), usd(floor), usd(210.0)])
    assert max(trial.constraints.values()) <= 0


def test_what_misses_the_files_limit_and_meets_another_counts_for_that(search: Search) -> None:
    slow = replace(
        infeasible(400.0), extra_limits=(within(SHORT_MS, 0.0, 2.0), within(LONG_MS, 300.0))
    )
    search.evaluator.answer = lambda _: slow
    search.run(1)
    [trial], [record] = trials_of(search), search.records
    assert record.outcome == "infeasible"
    assert record.score is None
    assert trial.values == pytest.approx([usd(20.0), usd(20.0), usd(300.0)])
    assert max(trial.constraints.values()) <= 0
    assert "within 300 ms: 300/s" in trial_text(record)


def test_what_misses_every_limit_breaks_the_constraint(search: Search) -> None:
    none = replace(
        infeasible(400.0), extra_limits=(within(SHORT_MS, 0.0, 2), within(LONG_MS, 0.0, 0.2))
    )
    search.evaluator.answer = lambda _: none
    search.run(1)
    [trial] = trials_of(search)
    assert list(trial.constraints.values()) == [0.2]


def test_a_failure_is_told_as_one(search: Search) -> None:
    search.evaluator.answer = lambda _: failed()
    search.run(1)
    assert [trial.state for trial in trials_of(search)] == [TrialState.FAIL]


def test_a_lost_journal_is_rebuilt_with_all_values(search: Search) -> None:
    search.run(3)
    before = [trial.values for trial in trials_of(search)]
    search.directory.journal.unlink()
    study, _ = search.opened()
    study.close()
    assert [trial.values for trial in trials_of(search)] == before
    assert study_in(search.folder).metric_names == NAMES


def test_what_was_recorded_and_not_told_is_told_whole(search: Search) -> None:
    study, _ = search.opened()
    proposal = study.ask()
    config = search.space.config(proposal.position)
    search.directory.trials.write(
        replace(record_of(proposal.number, config, in_proportion(config)), told_further=(2.0, 3.0))
    )
    search.opened()
    [trial] = trials_of(search)
    assert trial.state == TrialState.COMPLETE
    assert trial.values[1:] == [2.0, 3.0]


@pytest.mark.parametrize("sampler", SELF_TAUGHT)
def test_every_sampler_that_learns_from_trials_takes_several_objectives(
    tmp_path: Path, sampler: str
) -> None:
    """More than the startup trials, stopped and resumed, with a failure among them."""

    def answer(config: ServingConfig) -> Evaluation:
        return failed() if len(evaluator.evaluated) == 3 else in_proportion(config)

    evaluator = FakeEvaluator(answer)
    search = Search(tmp_path, small_space(), evaluator, sampler=sampler, context=SEVERAL)
    search.run(5)
    search.run(10)
    states = [trial.state for trial in trials_of(search)]
    assert len(search.records) == 10
    assert states.count(TrialState.FAIL) >= 1
    assert states.count(TrialState.COMPLETE) >= 9
    assert len(study_in(tmp_path).best_trials) >= 1


def test_rows_that_another_beats_are_not_on_the_front() -> None:
    inf = float("inf")
    assert undominated([[1, 3], [2, 2], [2, 3], [3, 1], [inf, 1], [inf, inf]]) == [0, 1, 3]
    assert undominated([[1, 1], [1, 1]]) == [0, 1], "equal ones beat each other nowhere"
    assert undominated([]) == []


ONE, TWO, THREE, _ = (four_points().config(four_points().at(row)) for row in range(4))


def front_of() -> tuple[ParetoEntry, ...]:
    records = [
        record_of(0, ONE, replace(ok(500.0), extra_limits=(within(SHORT_MS, 0.0, 1.0),))),
        record_of(1, TWO, replace(ok(300.0), extra_limits=(within(SHORT_MS, 200.0),))),
        record_of(2, THREE, replace(ok(250.0), extra_limits=(within(SHORT_MS, 150.0),))),
    ]
    again = [record_of(n, ONE, ok(450.0)) for n in range(2)]
    known = measured_configurations(records, LoadRuns(confirmations=again))
    return pareto_front(known, WORKLOAD, replace(SETTING, extra_limits_ms=(SHORT_MS,)))


def test_the_front_holds_what_nothing_beats_within_all_limits() -> None:
    first, second = front_of()
    assert first.description == describe(ONE)
    assert first.limits_ms == (LIMIT_MS, SHORT_MS)
    assert first.capacity_per_second == (450.0, None), "as it was confirmed"
    assert second.description == describe(TWO)
    assert second.usd_per_million_at_capacity == pytest.approx([usd(300.0), usd(200.0)])


def test_the_front_is_shown() -> None:
    console = Console(width=100, record=True, file=None, quiet=False)
    with console.capture() as captured:
        print_table(console, front_table(front_of()))
    shown = captured.get()
    assert "$ per million within each limit: the Pareto front" in shown
    for text in ("100 ms", "50 ms", describe(ONE), "missed", f"{usd(200.0):.4f}"):
        assert text in shown


def test_pareto_knows_what_a_trial_found_within_a_further_limit() -> None:
    record = record_of(0, ONE, replace(ok(300.0), extra_limits=(within(SHORT_MS, 180.0),)))
    [known] = measured_configurations([record], LoadRuns())
    assert known.searched_ms == (LIMIT_MS, SHORT_MS)
    found = capacity_within(known, SHORT_MS)
    assert found is not None
    assert (found[0].per_second, found[1]) == (180.0, "measured")
    between = capacity_within(known, 75.0)
    assert between is not None
    assert 180.0 <= between[0].per_second <= 300.0


def test_what_was_confirmed_bounds_what_a_trial_found_within_further_limits() -> None:
    """The trial served more than the machine did when it was confirmed."""
    further = (within(SHORT_MS, 280.0), within(LONG_MS, 320.0))
    record = record_of(0, ONE, replace(ok(300.0), extra_limits=further))
    for confirmed, expected in ((200.0, (200.0, 320.0)), (340.0, (280.0, 340.0))):
        again = [record_of(n, ONE, ok(confirmed, 95.0)) for n in range(2)]
        [known] = measured_configurations([record], LoadRuns(confirmations=again))
        found = [capacity_within(known, limit_ms) for limit_ms in (SHORT_MS, LONG_MS)]
        assert tuple(each[0].per_second for each in found if each) == pytest.approx(expected)


def test_a_study_of_one_limit_takes_over_nothing_of_the_others() -> None:
    good = record_of(0, ONE, replace(ok(300.0), extra_limits=(within(SHORT_MS, 180.0),)))
    bad = record_of(1, TWO, replace(infeasible(300.0), extra_limits=(within(LONG_MS, 180.0),)))
    [kept] = carried_over([good, bad], "old", four_points(), PRICE, DEMAND)
    assert kept.config == ONE
    assert (kept.further, kept.told_further) == ((), ())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampler": "guided"},
            "--sampler: must be one of gp, tpe, random, grid with --also-limit; got guided, which "
            "minimises the cost within one limit",
        ),
        (
            {"also_limits_ms": (300.0, 200.0)},
            "--also-limit: must be another limit than the space file's; got 200 ms",
        ),
        ({"warm_start": "old"}, "--warm-start: must be left out with --also-limit"),
    ],
)
def test_what_does_not_go_with_several_limits_is_refused(
    tmp_path: Path, settings: dict[str, object], message: str
) -> None:
    quickstart = shipped("search_spaces") / "quickstart.yaml"
    request = RunOptions(quickstart, also_limits_ms=(300.0,), results=tmp_path)
    with pytest.raises(UsageError) as refused:
        run_study(replace(request, **settings), lambda _: None)  # type: ignore[arg-type]
    assert message in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_the_sampler_follows_from_the_limits_where_none_is_chosen() -> None:
    request = RunOptions(Path("space.yaml"))
    assert request.chosen_sampler == "guided"
    several = replace(request, also_limits_ms=(300.0, 100.0, 300.0))
    assert (several.chosen_sampler, several.extra_limits_ms) == ("tpe", (100.0, 300.0))
    assert replace(several, sampler="gp").chosen_sampler == "gp"


def test_a_study_goes_on_with_the_limits_that_it_was_begun_with(tmp_path: Path) -> None:
    begun = StudyDirectory(tmp_path / "several")
    for limits_ms in ((50.0, 300.0), (50.0, 300.0), None):
        require_same_space(begun, QUICKSTART, MACHINE, "begin another", limits_ms)
    with pytest.raises(SpaceChangedError, match=r"also_limit_ms: was \[50.0, 300.0\], is \[50.0\]"):
        require_same_space(begun, QUICKSTART, MACHINE, "begin another", (50.0,))
    with pytest.raises(SpaceChangedError, match=r"also_limit_ms: was \[50.0, 300.0\], is None"):
        require_same_space(begun, QUICKSTART, MACHINE, "begin another", ())
    alone = StudyDirectory(tmp_path / "alone")
    require_same_space(alone, QUICKSTART, MACHINE, "begin another", ())
    assert alone.read_json(alone.space).keys() == {"space", "machine"}
    with pytest.raises(SpaceChangedError, match=r"also_limit_ms: was None, is \[50.0\]"):
        require_same_space(alone, QUICKSTART, MACHINE, "begin another", (50.0,))


def test_a_further_limit_that_is_none_is_refused() -> None:
    ran = CliRunner().invoke(commands, ["run", "--also-limit", "soon"], standalone_mode=False)
    assert (
        "must be a number above 0 and ms or s, such as 300ms, and at most an hour; got 'soon'"
        in str(ran.exception)
    )

"""The search on real Optuna and real records, with a function in the place of the server."""

from __future__ import annotations

import errno
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from optimizer.configuration.search_space import SearchSpace
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import EverythingFailedError, StorageError
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import TrialRecord
from optimizer.search.loop import SearchTime
from optimizer.space_file.reader import Budget
from optimizer.study.events import (
    EarlierTrials,
    Note,
    PhaseStarted,
    SearchStatusChanged,
    TrialFinished,
    TrialRecorded,
    TrialStarted,
)
from optimizer.study.optuna_study import OptunaStudy
from optimizer.study.record_store import RecordStore
from optimizer.study.search_status import SearchEnd
from tests.unit.studies import (
    FakeEvaluator,
    Search,
    as_fast_as_it_is,
    bounded,
    capacity_of,
    failed,
    four_points,
    infeasible,
    ok,
    record_of,
    small_space,
)

pytestmark = pytest.mark.usefixtures("fast_disk")
Answer = Callable[[ServingConfig], Evaluation]


@pytest.fixture
def search(tmp_path: Path) -> Search:
    return Search(tmp_path, small_space(), FakeEvaluator())


def of_four(search: Search, answer: Answer = as_fast_as_it_is) -> Search:
    """The same on a space of four points."""
    return replace(search, space=four_points(), evaluator=FakeEvaluator(answer))


def baseline_of(space: SearchSpace) -> ServingConfig:
    return space.config(space.baseline)


def failing_at(*wrong: ServingConfig, transient: bool = False) -> Answer:
    def answer(config: ServingConfig) -> Evaluation:
        return failed(transient=transient) if config in wrong else as_fast_as_it_is(config)

    return answer


def after(failures: int, then: Answer = as_fast_as_it_is, *, transient: bool = False) -> Answer:
    """Failures first, whatever is asked."""
    calls = Counter[str]()

    def answer(config: ServingConfig) -> Evaluation:
        calls["made"] += 1
        return failed(transient=transient) if calls["made"] <= failures else then(config)

    return answer


def states(search: Search) -> list[TrialState]:
    study, _ = search.opened()
    return [trial.state for trial in study._trials()]


def test_the_budget_of_trials_is_used_up(search: Search) -> None:
    assert search.run(7) == SearchEnd("the budget of 7 trials is used up", exhausted=False)
    assert len(search.records) == 7
    assert len(search.evaluator.evaluated) == 7


def test_the_baseline_is_measured_first(search: Search) -> None:
    search.run(3)
    assert search.evaluator.evaluated[0] == baseline_of(search.space)
    assert search.records[0].config == baseline_of(search.space)


def test_what_is_to_be_measured_first_is_once_in_its_order(search: Search) -> None:
    first = [search.space.at(row) for row in (7, 3, 7)]
    for trials in (2, 6):
        study, history = search.opened()
        search.loop(study, history).run(Budget(trials, 1e9), first=first)
    wanted = [search.space.baseline, *dict.fromkeys(first)]
    assert search.evaluator.evaluated[:3] == [search.space.config(at) for at in wanted]
    assert len(set(search.evaluator.evaluated)) == 6


def test_a_record_says_everything_of_its_trial(search: Search) -> None:
    search.run(1)
    (record,) = search.records
    capacity = capacity_of(record.config)
    assert record.measurement == ok(capacity).measurement
    assert (record.number, record.outcome, record.attempt) == (0, "ok", 1)
    assert record.reason == "met the limits"
    assert record.machine == "here"
    assert record.score is not None
    assert record.told_value == record.score.usd_per_million_at_capacity
    assert record.told_value == pytest.approx(100 / capacity)
    assert dict(record.constraints) == pytest.approx({"latency.bert": -0.5})
    assert (record.seconds.measuring, record.seconds.serving) == (2.0, 1.0)
    assert 0 < record.seconds.total < 30
    assert dict(record.params)["bert.instance_count"] == 1


def test_what_missed_the_limits_is_told_its_cost_at_saturation(search: Search) -> None:
    search.evaluator.answer = lambda _: infeasible(80)
    search.run(1)
    (record,) = search.records
    assert record.outcome == "infeasible"
    assert record.score is None
    assert record.told_value == pytest.approx(100 / 80)
    assert dict(record.constraints) == pytest.approx({"latency.bert": 0.5})


def test_what_was_bounded_breaks_no_constraint_and_is_no_incumbent(search: Search) -> None:
    space = search.space
    search.evaluator.answer = lambda config: (
        ok(100) if config == baseline_of(space) else bounded(1000)
    )
    search.run(3)
    first, *others = search.records
    assert [record.told_value for record in others] == [pytest.approx(0.1)] * 2
    assert [record.constraints for record in others] == [(("latency.bert", 0.0),)] * 2
    ended = [event for event in search.events if isinstance(event, TrialFinished)]
    assert [event.best and event.best.trial for event in ended] == [first] * 3


def test_a_configuration_is_told_the_bound_of_the_incumbent(search: Search) -> None:
    search.evaluator.answer = after(1, lambda _: ok(100))
    search.run(3)
    # 100 requests a second need 5 replicas for 500; a sixth would be dearer.
    assert search.evaluator.bounds == [None, None, pytest.approx(0.95 / 5)]


def test_a_configuration_is_told_what_similar_ones_served(search: Search) -> None:
    search.evaluator.answer = lambda _: ok(100)
    search.run(20)
    expected = search.evaluator.expected
    assert expected[0] is None
    known = [share for share in expected if share is not None]
    assert known == [pytest.approx(1 / 1.05)] * len(known)
    assert known


def test_watchers_are_told_what_happens(search: Search) -> None:
    search.run(2, SearchTime(TimeLimit(1e9, lambda: 0.0), lambda: 0.0))
    earlier, first, *rest = search.events
    assert isinstance(earlier, EarlierTrials)
    assert first == PhaseStarted("search", 2, 1e9)
    assert [type(event) for event in rest] == [
        SearchStatusChanged, TrialStarted, TrialRecorded, TrialFinished,
    ] * 2  # fmt: skip
    started = [event for event in rest if isinstance(event, TrialStarted)]
    assert [(e.number, e.measured, e.of) for e in started] == [(0, 1, 2), (1, 2, 2)]
    assert [e.record for e in rest if isinstance(e, TrialFinished)] == search.records


def test_repeats_are_told_and_neither_measured_nor_counted(search: Search) -> None:
    search = of_four(search)
    search.run(4)
    assert len(search.evaluator.evaluated) == 4
    assert len(set(search.evaluator.evaluated)) == 4
    study, history = search.opened()
    trials = study._trials()
    repeats = [trial for trial in trials if "repeat_of" in trial.user_attrs]
    assert len(trials) == 4 + len(repeats)
    assert repeats, "four of four points without a repeat: choose another seed"
    for trial in repeats:
        original = trials[trial.user_attrs["repeat_of"]]
        assert trial.values == original.values
        assert trial.number not in {record.number for record in history.records}


def test_a_space_that_is_measured_whole_ends_the_search(search: Search) -> None:
    search = of_four(search)
    ended = search.run(100)
    assert ended == SearchEnd(
        "all 4 valid configurations are measured", exhausted=True, regret_bound=0.0
    )
    points = {search.space.config(search.space.at(row)) for row in range(4)}
    assert set(search.evaluator.evaluated) == points
    assert len(search.records) == 4


def test_a_space_with_one_point_ends_the_search(search: Search) -> None:
    one = small_space(
        runtime=("openvino",), precision=("fp32",), batching=(False,), max_batch_size=(4,),
        max_queue_delay_us=(0,), instance_count=(1,), intra_op_threads=(1,),
    )  # fmt: skip
    search = replace(search, space=one)
    assert search.run(5).exhausted
    assert len(search.records) == 1


class Sleeping:
    """A server that does not answer; a test that waits for it fails by its own timeout."""

    asked = 0

    def __call__(self, _: ServingConfig) -> Evaluation:
        self.asked += 1
        time.sleep(3600)
        raise AssertionError("it was waited for")


class Clock:
    """Seconds that pass with every evaluation."""

    def __init__(self, seconds_each: float, answer: Answer) -> None:
        self.now = 0.0
        self._seconds_each = seconds_each
        self._answer = answer

    def monotonic(self) -> float:
        return self.now

    def __call__(self, config: ServingConfig) -> Evaluation:
        self.now += self._seconds_each
        return self._answer(config)


@pytest.mark.parametrize(("reserve", "trials"), [(0.0, 2), (15.0, 1)])
def test_no_trial_is_started_that_is_unlikely_to_end_in_time(
    search: Search, reserve: float, trials: int
) -> None:
    clock = Clock(40.0, as_fast_as_it_is)
    search.evaluator.answer = clock
    ended = search.run(100, SearchTime(TimeLimit(90.0, clock.monotonic), lambda: reserve))
    assert ended == SearchEnd("the time budget of 90 s is used up", exhausted=False)
    assert [record.seconds.total for record in search.records] == [40.0] * trials


def test_a_trial_that_takes_too_long_is_cut_off_and_left_to_the_next_run(search: Search) -> None:
    """It may take half of the time that is left to the confirm phase."""
    search.evaluator.answer = sleeping = Sleeping()
    ended = search.run(3, SearchTime(TimeLimit.of(1.5), lambda: 1.0))
    assert sleeping.asked == 1
    assert search.records == []
    assert ended == SearchEnd("the time budget of 90 s is used up", exhausted=False)
    search.evaluator.answer = as_fast_as_it_is
    search.run(3)
    assert [record.number for record in search.records] == [0, 1, 2]


def test_a_transient_failure_is_recorded_costs_no_trial_and_is_tried_once_more(
    search: Search,
) -> None:
    search.evaluator.answer = after(1, transient=True)
    search.run(2)
    first, second, third = search.records
    assert (first.outcome, first.attempt, first.told_value) == ("failed", 1, None)
    assert first.failure is not None
    assert first.failure.transient
    assert second.config == first.config
    assert (second.outcome, second.attempt, second.number) == ("ok", 2, 1)
    assert third.config != first.config
    assert states(search) == [TrialState.FAIL, TrialState.COMPLETE, TrialState.COMPLETE]


def test_a_second_transient_failure_is_final(search: Search) -> None:
    baseline = baseline_of(four_points())
    search = of_four(search, failing_at(baseline, transient=True))
    assert search.run(100).exhausted
    tries = Counter(search.evaluator.evaluated)
    assert tries.pop(baseline) == 2
    assert set(tries.values()) == {1}
    failures = [record for record in search.records if record.outcome == "failed"]
    assert [(record.config, record.attempt) for record in failures] == [
        (baseline, 1),
        (baseline, 2),
    ]


def test_what_could_not_be_measured_costs_no_trial_even_where_it_stays_so(search: Search) -> None:
    baseline = baseline_of(small_space())
    search.evaluator.answer = failing_at(baseline, transient=True)
    assert search.run(3).reason == "the budget of 3 trials is used up"
    outcomes = Counter(record.outcome for record in search.records)
    assert outcomes == {"failed": 2, "ok": 3}


def test_a_later_run_tries_again_what_could_not_be_measured(search: Search) -> None:
    baseline = baseline_of(four_points())
    search = of_four(search, failing_at(baseline, transient=True))
    search.run(100)
    search.evaluator.answer = as_fast_as_it_is
    assert search.run(100).exhausted
    assert Counter(search.evaluator.evaluated)[baseline] == 3
    assert search.records[-1].config == baseline
    assert search.records[-1].outcome == "ok"


def test_where_most_could_not_be_measured_nothing_is_recommended(search: Search) -> None:
    *fast, slowest = sorted(
        (four_points().config(four_points().at(row)) for row in range(4)), key=capacity_of
    )[::-1]
    reason = "could not be measured: at 51.5/s, the load generator fell 31.8 ms behind"

    def answer(config: ServingConfig) -> Evaluation:
        return failed(reason, transient=True) if config in fast else as_fast_as_it_is(config)

    search = of_four(search, answer)
    with pytest.raises(EverythingFailedError) as raised:
        search.run(100)
    assert str(raised.value) == (
        "3 of 4 configurations could not be measured, so nothing is recommended; the last one: "
        + reason
    )
    assert raised.value.exit_code == 4
    measured = [record for record in search.records if record.outcome == "ok"]
    assert [record.config for record in measured] == [slowest]


def test_a_failure_that_would_repeat_itself_is_never_measured_again(search: Search) -> None:
    baseline = baseline_of(four_points())
    search = of_four(search, failing_at(baseline))
    assert search.run(100).exhausted
    search.run(100)
    assert Counter(search.evaluator.evaluated)[baseline] == 1
    assert len(search.evaluator.evaluated) == 4


def test_out_of_memory_spares_everything_larger(search: Search) -> None:
    def too_large(config: ServingConfig) -> Evaluation:
        (model,) = config.models
        if model.artifact.precision == "fp32" and model.instance_count > 1:
            return failed("cannot allocate memory", out_of_memory=True)
        return as_fast_as_it_is(config)

    space = small_space(runtime=("openvino",), max_queue_delay_us=(0,), intra_op_threads=(1,))
    search = replace(search, space=space, evaluator=FakeEvaluator(too_large))
    assert search.run(1000).exhausted
    failures = [record.config.models[0] for record in search.records if record.failure is not None]
    shapes = [(model.max_batch_size, model.instance_count) for model in failures]
    assert shapes, "some were too large"
    for n, (batch, count) in enumerate(shapes):
        assert not any(b <= batch and c <= count for b, c in shapes[:n])
    evaluated = {config.models[0].artifact.precision for config in search.evaluator.evaluated}
    assert evaluated == {"fp32", "int8"}


def test_five_failures_in_a_row_have_the_baseline_tried_again(search: Search) -> None:
    baseline = baseline_of(search.space)
    others_fail = after(6, lambda config: failed())

    def answer(config: ServingConfig) -> Evaluation:
        return as_fast_as_it_is(config) if config == baseline else others_fail(config)

    search.evaluator.answer = answer
    assert search.run(6).reason == "the budget of 6 trials is used up"
    assert [config == baseline for config in search.evaluator.evaluated] == [
        True, False, False, False, False, False, True,
    ]  # fmt: skip
    assert (
        Note("5 consecutive trials failed; rerunning the baseline", warning=True, trouble=True)
        in search.events
    )
    assert len(search.records) == 6


def test_when_the_baseline_fails_too_the_run_ends(search: Search) -> None:
    search.evaluator.answer = lambda config: failed(
        "no memory left" if config == baseline_of(search.space) else "it broke"
    )
    with pytest.raises(EverythingFailedError) as caught:
        search.run(100)
    assert str(caught.value) == (
        "5 consecutive trials failed and so did the baseline; "
        "last trial: it broke; baseline: no memory left"
    )
    assert [record.outcome for record in search.records] == ["failed"] * 5
    assert len(search.evaluator.evaluated) == 6


def test_failures_with_successes_between_end_nothing(search: Search) -> None:
    calls = Counter[str]()

    def answer(config: ServingConfig) -> Evaluation:
        calls["made"] += 1
        return as_fast_as_it_is(config) if calls["made"] % 5 == 0 else failed()

    search.evaluator.answer = answer
    search.run(14)
    assert [record.outcome for record in search.records].count("ok") == 2
    assert not any(isinstance(event, Note) for event in search.events)


class KilledError(BaseException):
    """Stands for a kill -9: nothing handles it."""


def killed(*_: object, **__: object) -> None:
    raise KilledError


def test_a_trial_that_was_recorded_and_not_told_is_not_measured_again(search: Search) -> None:
    study, history = search.opened()
    told = study.tell

    def tell(record: TrialRecord, number: int | None = None) -> None:
        if record.number == 2:
            raise KilledError
        told(record, number)

    study.tell = tell  # type: ignore[method-assign]
    with pytest.raises(KilledError):
        search.loop(study, history).run(Budget(10, 1e9))
    assert [record.number for record in search.records] == [0, 1, 2]
    measured = list(search.evaluator.evaluated)

    search.run(5)
    assert search.evaluator.evaluated[:3] == measured
    assert len(set(search.evaluator.evaluated)) == len(search.evaluator.evaluated) == 5
    assert states(search)[:3] == [TrialState.COMPLETE] * 3


def test_a_trial_that_was_cut_off_is_measured_again(search: Search) -> None:
    search.run(2)
    search.evaluator.answer = killed  # type: ignore[assignment]
    with pytest.raises(KilledError):
        search.run(5)
    cut_off = search.evaluator.evaluated[-1]
    assert len(search.records) == 2

    search.evaluator.answer = as_fast_as_it_is
    search.run(3)
    assert search.records[-1].config == cut_off
    assert states(search) == [TrialState.COMPLETE] * 3
    assert search.records[-1].number == 2


def dying(method: Callable[..., object], at: int, *, done: bool) -> Callable[..., object]:
    """A method during whose n-th call the process is killed, once it is done or before."""
    calls = Counter[str]()

    def die(*arguments: object) -> object:
        calls["made"] += 1
        if calls["made"] == at and not done:
            raise KilledError
        result = method(*arguments)
        if calls["made"] == at:
            raise KilledError
        return result

    return die


@pytest.mark.parametrize("sampler", ["tpe", "random", "grid"])
@pytest.mark.parametrize(
    ("owner", "step"), [(RecordStore, "write"), (OptunaStudy, "tell"), (OptunaStudy, "enqueue")]
)
def test_a_search_that_is_killed_again_and_again_ends_as_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, owner: type, step: str
) -> None:
    """The first trial fails and is tried again, also where the kill came before it was enqueued."""
    searches = []
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        evaluator = FakeEvaluator(after(1, transient=True))
        searches.append(Search(tmp_path / name, small_space(), evaluator, sampler=sampler))
    whole, pieces = searches
    whole.run(8)
    for number in range(9):
        with monkeypatch.context() as patch, suppress(KilledError):
            killed_at = dying(getattr(owner, step), 1 + number % 3, done=step == "write")
            patch.setattr(owner, step, killed_at)
            pieces.run(8)
    pieces.run(8)
    assert [_result(record) for record in pieces.records] == [_result(r) for r in whole.records]
    assert states(pieces) == states(whole)


def _result(record: TrialRecord) -> tuple[object, ...]:
    return record.number, record.config, record.attempt, record.outcome, record.told_value


def test_the_baseline_that_was_cut_off_is_still_first(search: Search) -> None:
    search.evaluator.answer = killed  # type: ignore[assignment]
    with pytest.raises(KilledError):
        search.run(5)
    search.evaluator.answer = as_fast_as_it_is
    search.run(2)
    baseline = baseline_of(search.space)
    assert search.records[0].config == baseline
    assert Counter(search.evaluator.evaluated)[baseline] == 2


def test_a_study_that_is_run_on_in_pieces_measures_nothing_twice(search: Search) -> None:
    for trials in (1, 2, 4, 4, 8):
        search.run(trials)
        assert len(search.records) == trials
    assert len(set(search.evaluator.evaluated)) == len(search.evaluator.evaluated) == 8


@pytest.mark.parametrize("sampler", ["tpe", "random", "guided", "grid"])
def test_pieces_measure_what_one_run_does(tmp_path: Path, sampler: str) -> None:
    runs = []
    for name in ("whole", "pieces"):
        (tmp_path / name).mkdir()
        runs.append(Search(tmp_path / name, small_space(), FakeEvaluator(), sampler=sampler))
    whole, pieces = runs
    whole.run(8)
    for trials in range(1, 9):
        pieces.run(trials)
    assert pieces.evaluator.evaluated == whole.evaluator.evaluated


def test_what_was_carried_over_is_neither_measured_nor_counted(search: Search) -> None:
    search = of_four(search)
    for row in (0, 1):
        record = record_of(row, search.space.config(search.space.at(row)), ok(100))
        search.directory.trials.write(replace(record, origin="another"))
    search.run(1)
    assert len(search.evaluator.evaluated) == 1
    assert search.run(100).exhausted
    left = {search.space.config(search.space.at(row)) for row in (2, 3)}
    assert set(search.evaluator.evaluated) == left


def test_a_record_that_cannot_be_written_ends_the_run(
    search: Search, monkeypatch: pytest.MonkeyPatch
) -> None:
    search.run(1)

    def full(descriptor: int) -> None:
        if "/trials/." in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match=r"^cannot write .*/trials/00001\.json: No space"):
            search.run(3)
    assert len(search.records) == 1
    assert states(search)[1] == TrialState.RUNNING  # its number is kept for it

    lost = search.evaluator.evaluated[-1]
    search.run(2)
    assert search.records[-1].config == lost


def test_the_loop_finds_the_cheapest_of_a_small_space(search: Search) -> None:
    search = of_four(search)
    search.run(100)
    _, history = search.opened()
    points = [search.space.config(search.space.at(row)) for row in range(4)]
    assert history.incumbent is not None
    assert history.incumbent.config == max(points, key=capacity_of)

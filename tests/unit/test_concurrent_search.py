"""The search on several workers in virtual time, with a function in the place of the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from optuna.trial import TrialState

from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import EverythingFailedError, WorkersLostError
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Seconds, TrialRecord
from optimizer.search.drift import TRIALS_BETWEEN
from optimizer.search.recorded.virtual_pool import VirtualPool
from optimizer.search.running_tasks import MOST_LOSSES
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState
from optimizer.study.events import Note, TrialFinished
from optimizer.study.optuna_study import OptunaStudy, Proposal
from tests.unit.studies import (
    SETTING,
    FakeEvaluator,
    Search,
    as_fast_as_it_is,
    bounded,
    capacity_of,
    failed,
    four_points,
    small_space,
)

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
BASELINE = SPACE.config(SPACE.baseline)
SAMPLERS = ["guided", pytest.param("gp", marks=pytest.mark.slow), "tpe", "random", "grid"]
Answer = Callable[[ServingConfig], Evaluation]


def unevenly_long(config: ServingConfig) -> Evaluation:
    """What a configuration serves, after a time of its own."""
    return replace(
        as_fast_as_it_is(config), seconds=Seconds(measuring=3 + 10 * (capacity_of(config) % 1))
    )


class WatchedPool(VirtualPool):
    """Keeps what ran at the same time, and loses the workers that `loses` says.

    A lost worker is replaced, unless `replaced` is false.
    """

    def __init__(
        self,
        evaluator: FakeEvaluator,
        workers: int = 4,
        loses: Callable[[Task], bool] = lambda _: False,
        *,
        replaced: bool = True,
    ) -> None:
        super().__init__(evaluator, SETTING.slot, workers)
        self._loses = loses
        self._replaced = replaced
        self._left = workers
        self.submitted: list[Task] = []
        self.together: list[list[Task]] = []

    @property
    def workers(self) -> Sequence[WorkerState]:
        return super().workers[: self._left]

    @property
    def trials(self) -> list[Task]:
        return [task for task in self.submitted if task.kind == "evaluate"]

    @property
    def running(self) -> list[Task]:
        return [state.task for state in super().workers if state.task is not None]

    def submit(self, task: Task) -> None:
        super().submit(task)
        self.submitted.append(task)
        self.together.append(self.running)

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        end = super().next_end(timeout_seconds)
        if end is None or not self._loses(end.task):
            return end
        if not self._replaced:
            self._idle.remove(int(end.worker))
            self._left -= 1
        return replace(end, evaluation=None, lost="its node is gone")


def search_in(
    folder: Path,
    answer: Answer = unevenly_long,
    *,
    workers: int = 4,
    loses: Callable[[Task], bool] = lambda _: False,
    replaced: bool = True,
    sampler: str = "random",
) -> tuple[Search, WatchedPool]:
    evaluator = FakeEvaluator(answer)
    pool = WatchedPool(evaluator, workers, loses, replaced=replaced)
    return Search(folder, SPACE, evaluator, sampler=sampler, pool=pool), pool


def states(search: Search) -> list[TrialState]:
    study, _ = search.opened()
    return [trial.state for trial in study._trials()]


def in_order_of_tells(records: Sequence[TrialRecord]) -> list[TrialRecord]:
    positions = [record.told_position for record in records]
    assert sorted(p for p in positions if p is not None) == list(range(len(records)))
    return sorted(records, key=lambda record: record.told_position or 0)


def test_all_workers_are_busy_until_the_budget_is_given_out(tmp_path: Path) -> None:
    search, pool = search_in(tmp_path)
    assert search.run(9).reason == "the budget of 9 trials is used up"
    assert len(search.records) == 9
    assert [len(tasks) for tasks in pool.together] == [1, 2, 3, 4, 4, 4, 4, 4, 4]
    durations = [record.seconds.measuring for record in search.records]
    assert pool.seconds < sum(durations) / 4 + max(durations)


def test_the_baseline_is_measured_beside_the_first_trials_and_bounds_the_later(
    tmp_path: Path,
) -> None:
    search, pool = search_in(tmp_path, workers=2)
    search.run(5)
    assert [task.config for task in pool.together[0]] == [BASELINE]
    assert len(pool.together[1]) == 2
    bounds = [task.prune_below for task in pool.submitted]
    assert bounds[:2] == [None, None]
    assert None not in bounds[2:]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_configuration_is_measured_twice(tmp_path: Path, sampler: str) -> None:
    search, pool = search_in(tmp_path, sampler=sampler, workers=6)
    search.run(14)
    assert len({task.config for task in pool.trials}) == len(pool.trials) == 14
    assert len(search.records) == len({record.config for record in search.records}) == 14


def test_a_proposal_that_repeats_a_running_trial_is_told_its_result(tmp_path: Path) -> None:
    search, pool = search_in(tmp_path, workers=4)
    search = replace(search, space=four_points())
    assert search.run(100).exhausted
    assert len(pool.submitted) == len(search.records) == 4
    study, _ = search.opened()
    trials = study._trials()
    repeats = [trial for trial in trials if "repeat_of" in trial.user_attrs]
    assert any(
        trial.datetime_start is not None
        and (of := trials[trial.user_attrs["repeat_of"]]).datetime_complete is not None
        and trial.datetime_start < of.datetime_complete
        for trial in repeats
    ), "no proposal repeated a running trial: choose another seed"
    assert len(trials) == 4 + len(repeats)
    for trial in repeats:
        assert trial.values == trials[trial.user_attrs["repeat_of"]].values


def test_results_are_told_in_the_order_in_which_they_come(tmp_path: Path) -> None:
    search, _ = search_in(tmp_path, sampler="grid")
    search.run(12)
    told = in_order_of_tells(search.records)
    assert [e.record for e in search.events if isinstance(e, TrialFinished)] == told
    assert [record.number for record in told] != sorted(record.number for record in told)
    at_proposal = [record.told_at_proposal for record in search.records]
    assert at_proposal[:4] == [0] * 4
    assert at_proposal[4:] == list(range(1, 9))
    study, history = search.opened()
    assert list(history.records) == told
    trials = study._trials()
    completed = [trials[record.number].datetime_complete for record in told]
    assert completed == sorted(time for time in completed if time is not None)


def test_one_worker_tells_in_the_order_of_its_trials(tmp_path: Path) -> None:
    search = Search(tmp_path, SPACE, FakeEvaluator())
    search.run(3)
    assert [(r.told_at_proposal, r.told_position, r.workers) for r in search.records] == [
        (n, n, ("local",)) for n in range(3)
    ]


def test_a_lost_worker_has_its_trial_measured_by_another(tmp_path: Path) -> None:
    lost = Counter[int]()

    def loses(task: Task) -> bool:
        lost[task.number] += 1
        return task.number in (2, 5) and lost[task.number] == 1

    search, pool = search_in(tmp_path, loses=loses, sampler="grid")
    search.run(8)
    assert [record.number for record in search.records] == list(range(8))
    assert states(search) == [TrialState.COMPLETE] * 8
    attempts = Counter((task.number, task.config) for task in pool.submitted)
    assert {number for (number, _), count in attempts.items() if count == 2} == {2, 5}
    assert [task.attempt for task in pool.submitted if task.number == 2] == [1, 2]
    assert [len(record.workers) for record in search.records] == [1, 1, 2, 1, 1, 2, 1, 1]
    notes = [event.text for event in search.events if isinstance(event, Note)]
    assert len(notes) == 2
    assert all("was lost: its node is gone; what it measured is measured again" in n for n in notes)


def test_a_configuration_that_ends_every_worker_has_failed(tmp_path: Path) -> None:
    search, pool = search_in(tmp_path, loses=lambda task: task.number == 3, sampler="grid")
    search.run(6)
    assert [task.attempt for task in pool.submitted if task.number == 3] == [1, 2, 3]
    record = search.records[3]
    assert (record.outcome, record.attempt, len(record.workers)) == ("failed", 1, MOST_LOSSES)
    assert record.reason == (
        f"lost 3 workers; the last one, {record.workers[-1]}: its node is gone"
    )
    assert not record.unmeasured
    assert states(search)[3] == TrialState.FAIL
    assert len(search.records) == 6


def test_without_a_worker_left_the_run_ends_and_can_be_resumed(tmp_path: Path) -> None:
    def loses(task: Task) -> bool:
        return task.number > 2

    search, pool = search_in(tmp_path, loses=loses, replaced=False, sampler="grid")
    with pytest.raises(WorkersLostError) as caught:
        search.run(10)
    cut_off = {task.config for task in pool.submitted if loses(task)}
    assert str(caught.value).startswith("no worker is left: ")
    assert str(caught.value).endswith(
        f" was lost: its node is gone; rerun the same command to measure the {len(cut_off)} "
        "configurations that were running, and the others"
    )
    assert [record.number for record in search.records] == [0, 1, 2]

    pool = WatchedPool(search.evaluator)
    search = replace(search, pool=pool)
    search.run(10)
    assert {task.config for task in pool.trials[: len(cut_off)]} == cut_off
    assert len(search.records) == 10
    assert len({record.config for record in search.records}) == 10


class KilledError(Exception):
    """Stands for a kill -9 of the coordinator."""


def test_trials_that_were_cut_off_are_measured_again(tmp_path: Path) -> None:
    search, pool = search_in(tmp_path)

    def kill(event: object) -> None:
        if isinstance(event, TrialFinished) and event.record.told_position == 4:
            raise KilledError

    search.watchers.append(kill)
    with pytest.raises(KilledError):
        search.run(20)
    running = {task.config for task in pool.running}
    assert len(running) == 3
    again = WatchedPool(search.evaluator)
    search = replace(search, pool=again, watchers=[])
    search.run(20)
    assert {task.config for task in again.trials[:3]} == running
    assert len(search.records) == 20
    assert len({record.config for record in search.records}) == 20
    in_order_of_tells(search.records)


def test_a_transient_failure_is_tried_again_while_others_run(tmp_path: Path) -> None:
    tries = Counter[ServingConfig]()

    def answer(config: ServingConfig) -> Evaluation:
        tries[config] += 1
        fails = len(tries) == 3 and tries[config] == 1
        long = unevenly_long(config)
        return replace(failed(transient=True), seconds=long.seconds) if fails else long

    search, pool = search_in(tmp_path, answer)
    search.run(8)
    [first, second] = [r for r in search.records if tries[r.config] == 2]
    assert (first.outcome, first.attempt) == ("failed", 1)
    assert (second.outcome, second.attempt) == ("ok", 2)
    assert sum(record.outcome == "ok" for record in search.records) == 8
    assert len(pool.submitted) == 9


def test_consecutive_failures_have_the_baseline_measured_before_anything_else(
    tmp_path: Path,
) -> None:
    def answer(config: ServingConfig) -> Evaluation:
        long = replace(failed(), seconds=Seconds(measuring=20.0))
        return unevenly_long(config) if config == BASELINE else long

    search, pool = search_in(tmp_path, answer)
    search.run(15)
    first, *reruns = [
        n
        for n, task in enumerate(pool.submitted)
        if task.config == BASELINE and task.kind == "evaluate"
    ]
    # After five failures, and after ten. Meanwhile no trial starts.
    assert (first, len(reruns)) == (0, 2)
    for rerun in reruns:
        assert BASELINE not in {task.config for task in pool.together[rerun + 1]}
    assert len(search.records) == 15


def test_after_consecutive_failures_no_trial_starts_until_the_baseline_has_its_result(
    tmp_path: Path,
) -> None:
    def answer(config: ServingConfig) -> Evaluation:
        return unevenly_long(config) if config == BASELINE else failed()

    search, pool = search_in(tmp_path, answer)
    search.run(9)
    failures = 5 + 2  # the two others of three workers that run as the fifth fails
    assert [record.config for record in in_order_of_tells(search.records)][failures] == BASELINE
    assert [task.config for task in pool.submitted].count(BASELINE) == 1


def test_when_the_baseline_fails_too_the_run_ends(tmp_path: Path) -> None:
    search, _ = search_in(tmp_path, lambda config: failed(f"broken {config == BASELINE}"))
    with pytest.raises(EverythingFailedError, match="last trial: broken False; baseline: broken T"):
        search.run(20)


def test_drift_is_measured_by_one_worker_while_others_run(tmp_path: Path) -> None:
    search, pool = search_in(tmp_path)
    search.evaluator.pace = lambda _: bounded(0.5 * capacity_of(BASELINE))
    search.run(TRIALS_BETWEEN + 6)
    [drift] = [n for n, task in enumerate(pool.submitted) if task.kind == "saturate"]
    assert len(pool.together[drift]) == 4
    assert search.evaluator.saturated == [BASELINE]
    [note] = [event.text for event in search.events if isinstance(event, Note)]
    assert "machine performance changed by" in note
    assert len(search.records) == TRIALS_BETWEEN + 6


class RecordedPool:
    """Evaluates what the records of a study say, and lets proposals be made when they were."""

    def __init__(self, records: Sequence[TrialRecord], drift: Evaluation) -> None:
        self._evaluations = {r.number: _evaluation_of(r) for r in records}
        self._at_proposal = [r.told_at_proposal for r in sorted(records, key=lambda r: r.number)]
        self._order = [record.number for record in in_order_of_tells(records)]
        self._told = 0
        self._trials: dict[int, Task] = {}
        self._drift: list[Task] = []
        self._drift_result = drift

    @property
    def idle(self) -> int:
        proposed = self._told + len(self._trials)
        everything = proposed == len(self._at_proposal)
        return int(everything or self._at_proposal[proposed] == self._told)

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [WorkerState("records", "a folder")]

    def submit(self, task: Task) -> None:
        if task.kind == "saturate":
            self._drift.append(task)
        else:
            self._trials[task.number] = task

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        if self._drift:
            return TaskEnd(self._drift.pop(), "records", self._drift_result)
        number = self._order[self._told]
        self._told += 1
        return TaskEnd(self._trials.pop(number), "records", self._evaluations[number])


def _evaluation_of(record: TrialRecord) -> Evaluation:
    overshoot = max((value for _, value in record.constraints), default=None)
    return Evaluation(
        record.outcome,
        record.reason,
        record.measurement,
        overshoot,
        failure=record.failure,
        seconds=record.seconds,
    )


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_records_of_a_concurrent_search_have_the_same_proposed_again(
    tmp_path: Path, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Proposal] = []
    ask = OptunaStudy.ask

    def asking(study: OptunaStudy) -> Proposal:
        asked.append(ask(study))
        return asked[-1]

    monkeypatch.setattr(OptunaStudy, "ask", asking)
    tries = Counter[ServingConfig]()

    def answer(config: ServingConfig) -> Evaluation:
        tries[config] += 1
        transient = len(tries) % 7 == 3 and tries[config] == 1
        long = unevenly_long(config)
        return replace(failed(transient=True), seconds=long.seconds) if transient else long

    for name in ("first", "again"):
        (tmp_path / name).mkdir()
    first, _ = search_in(tmp_path / "first", answer, workers=5, sampler=sampler)
    first.run(15)
    proposed = list(asked)
    asked.clear()
    again = replace(
        first,
        folder=tmp_path / "again",
        pool=RecordedPool(first.records, bounded(1.05 * capacity_of(BASELINE))),
        events=[],
    )
    again.run(15)
    assert asked == proposed
    assert [_told(record) for record in again.records] == [_told(r) for r in first.records]


def _told(record: TrialRecord) -> tuple[object, ...]:
    return record.number, record.config, record.told_at_proposal, record.told_position

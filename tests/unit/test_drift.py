from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.measurement.evaluation import Evaluation
from optimizer.search.drift import TRIALS_BETWEEN, DriftRuns, saturation_rates
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import DriftRunStarted, Event, Note
from optimizer.study.history import History
from tests.unit.studies import (
    SETTING,
    FakeEvaluator,
    Search,
    bounded,
    capacity_of,
    failed,
    history_of,
    ok,
    record_of,
    small_space,
)

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = small_space()
BASELINE = SPACE.config(SPACE.baseline)
OTHERS = [c for row in range(len(SPACE)) if (c := SPACE.config(SPACE.at(row))) != BASELINE]
# Saturates at 105/s.
FIRST = (BASELINE, ok(100))
STEADY = bounded(105)


class Referring:
    def __init__(self, folder: Path, pace: Evaluation = STEADY) -> None:
        self.directory = StudyDirectory(folder)
        self.evaluator = FakeEvaluator(pace=lambda _: pace)
        self.events: list[Event] = []
        self.runs = DriftRuns(BASELINE, self.directory, SETTING, self.events.append)

    def before_trial(self, history: History) -> None:
        """Do what the search does before a trial."""
        if (task := self.runs.next_run(history)) is not None:
            self.runs.finish(task.run(self.evaluator, SETTING.slot), history)

    @property
    def notes(self) -> list[str]:
        return [event.text for event in self.events if isinstance(event, Note)]


def after(trials: int) -> History:
    """A history of the baseline and so many others."""
    return history_of(FIRST, *((config, ok(50)) for config in OTHERS[:trials]))


def test_a_new_study_runs_it_every_ten_trials(tmp_path: Path) -> None:
    referring = Referring(tmp_path)
    referring.before_trial(History({}))
    ran = []
    for trials in range(2 * TRIALS_BETWEEN + 1):
        referring.before_trial(after(trials))
        ran.append(len(referring.evaluator.saturated))
    # The baseline is a trial too.
    assert ran == [0] * 9 + [1] * 10 + [2] * 2
    assert set(referring.evaluator.saturated) == {BASELINE}


def test_a_study_that_goes_on_runs_it_at_once(tmp_path: Path) -> None:
    referring = Referring(tmp_path)
    referring.before_trial(after(3))
    referring.before_trial(after(4))
    assert len(referring.evaluator.saturated) == 1


def test_without_a_baseline_that_was_measured_there_is_nothing_to_compare(tmp_path: Path) -> None:
    referring = Referring(tmp_path)
    referring.before_trial(history_of((BASELINE, failed()), (OTHERS[0], ok(50))))
    assert referring.evaluator.saturated == []


def test_a_change_of_pace_is_said_with_both_figures(tmp_path: Path) -> None:
    referring = Referring(tmp_path, bounded(84))
    referring.before_trial(after(1))
    [note] = referring.notes
    assert "machine performance changed by -20%" in note
    assert "84 requests/s now" in note
    assert "105 requests/s then" in note
    assert DriftRunStarted(BASELINE) in referring.events


@pytest.mark.parametrize("now", [bounded(105), bounded(102), failed("gone", transient=True)])
def test_what_is_small_or_unknown_is_not_said(tmp_path: Path, now: Evaluation) -> None:
    referring = Referring(tmp_path, now)
    referring.before_trial(after(1))
    assert referring.notes == []


def test_every_run_is_kept(tmp_path: Path) -> None:
    for pace in (bounded(100), failed("gone", transient=True), bounded(90)):
        Referring(tmp_path, pace).before_trial(after(1))
    records = StudyDirectory(tmp_path).drift_runs.read_all()
    assert [(n, r.outcome) for n, r in records.items()] == [
        (0, "bounded"),
        (1, "failed"),
        (2, "bounded"),
    ]
    found = saturation_rates(list(records.values()), BASELINE)
    assert [pace.per_second for pace in found] == pytest.approx([100, 90], rel=0.02)


def test_only_the_reference_tells_the_pace() -> None:
    records = [record_of(0, *FIRST), record_of(1, OTHERS[0], ok(300))]
    assert [pace.per_second for pace in saturation_rates(records, BASELINE)] == pytest.approx(
        [105], rel=0.02
    )


def test_a_search_runs_it_between_its_trials(tmp_path: Path) -> None:
    evaluator = FakeEvaluator(pace=lambda _: bounded(1.05 * capacity_of(BASELINE)))
    search = Search(tmp_path, SPACE, evaluator)
    search.run(TRIALS_BETWEEN)
    assert evaluator.saturated == []
    search.run(TRIALS_BETWEEN + 2)
    assert evaluator.saturated == [BASELINE]
    assert len(search.records) == TRIALS_BETWEEN + 2

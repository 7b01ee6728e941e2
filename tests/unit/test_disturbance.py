"""Whether trials that run at the same time disturb each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from optimizer.cluster import disturbance
from optimizer.cluster.disturbance import CheckedSlots
from optimizer.cluster.local_slots import LocalSlots
from optimizer.errors import DamagedStudyError
from optimizer.measurement.disturbance import DisturbanceCheck, WorkerRate
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import DisturbanceCheckStarted, Event, Note
from tests.unit.studies import bounded, four_points

pytestmark = pytest.mark.usefixtures("fast_disk")
SPACE = four_points()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in range(len(SPACE))]
BASELINE = CONFIGS[0]


class FakeSlots:
    """Two slots without processes: tasks end in the order of their submission.

    Attributes:
        rates: at which each slot saturates in the next run together; None is lost.
    """

    def __init__(self) -> None:
        self.rates: list[float | None] = [100.0, 100.0]
        self._tasks: list[Task | None] = [None, None]
        self._most = 2

    @property
    def idle(self) -> int:
        return max(0, self._most - sum(task is not None for task in self._tasks))

    @property
    def workers(self) -> Sequence[WorkerState]:
        return [WorkerState(f"slot-{n}", "here", task) for n, task in enumerate(self._tasks)]

    def one_at_a_time(self) -> None:
        self._most = 1

    def submit(self, task: Task) -> None:
        assert self.idle
        self._tasks[self._tasks.index(None)] = task

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        for n, task in enumerate(self._tasks):
            if task is not None:
                self._tasks[n] = None
                return TaskEnd(task, f"slot-{n}", bounded(100))
        return None

    def run_together(self, task: Task) -> Sequence[TaskEnd]:
        assert self.idle == 2
        return [
            TaskEnd(task, f"slot-{n}", bounded(rate) if rate is not None else None, "it is gone")
            for n, rate in enumerate(self.rates)
        ]


class Checked:
    """Slots that are checked."""

    def __init__(self, folder: Path) -> None:
        self.slots = FakeSlots()
        self.directory = StudyDirectory(folder)
        self.events: list[Event] = []

    def pool(self, most: float | None = None) -> CheckedSlots:
        slots = cast(LocalSlots, self.slots)
        return CheckedSlots(slots, BASELINE, self.directory, self.events.append, most)

    @property
    def notes(self) -> list[Note]:
        return [event for event in self.events if isinstance(event, Note)]


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    return Checked(tmp_path)


def test_the_baseline_is_measured_alone_and_on_all_before_the_first_trial(checked: Checked) -> None:
    pool = checked.pool()
    assert pool.idle == 2
    pool.submit(Task(0, 1, CONFIGS[1]))
    [check] = checked.directory.disturbance.read()
    assert check.alone.worker == "slot-0"
    assert [rate.worker for rate in sorted(check.together, key=lambda r: r.worker)] == [
        "slot-0",
        "slot-1",
    ]
    assert check.slowdown == pytest.approx(0.0, abs=0.01)
    assert DisturbanceCheckStarted(BASELINE, 2) in checked.events
    assert checked.notes == [
        Note(
            "the baseline saturates at 100 requests/s alone, and at 100 to 100 on 2 workers at the "
            "same time: trials do not disturb each other notably"
        )
    ]
    end = pool.next_end(30)
    assert end is not None
    assert end.task.number == 0
    pool.submit(Task(1, 1, CONFIGS[2]))
    assert len(checked.directory.disturbance.read()) == 1, "again only after an hour"


def test_a_disturbance_is_said_and_goes_on_without_a_limit(checked: Checked) -> None:
    checked.slots.rates = [100.0, 80.0]
    pool = checked.pool()
    pool.submit(Task(0, 1, CONFIGS[1]))
    [note] = checked.notes
    assert note.warning
    assert "at 80 to 100 on 2 workers at the same time: the slowest loses 20%" in note.text
    assert pool.idle == 1


@pytest.mark.parametrize(("most", "idle"), [(0.25, 1), (0.15, 0), (0.01, 0)])
def test_above_the_limit_it_goes_back_to_one_trial_at_a_time(
    checked: Checked, most: float, idle: int
) -> None:
    checked.slots.rates = [100.0, 80.0]
    pool = checked.pool(most)
    pool.submit(Task(0, 1, CONFIGS[1]))
    assert pool.idle == idle
    [note] = checked.notes
    assert ("one trial at a time from now on" in note.text) == (idle == 0)


def test_every_hour_the_running_trials_are_waited_for_and_it_is_checked_again(
    checked: Checked,
) -> None:
    pool = checked.pool()
    pool.submit(Task(0, 1, CONFIGS[1]))
    assert pool.idle == 1
    pool._due_at = 0.0
    assert pool.idle == 0
    assert pool.next_end(30) is not None
    assert pool.idle == 2
    pool.submit(Task(1, 1, CONFIGS[2]))
    assert len(checked.directory.disturbance.read()) == 2


def test_a_check_that_fails_is_said_and_ends_nothing(checked: Checked) -> None:
    checked.slots.rates = [100.0, None]
    pool = checked.pool(0.01)
    pool.submit(Task(0, 1, CONFIGS[1]))
    [note] = checked.notes
    assert note.text == ("whether trials disturb each other could not be measured: it is gone")
    assert checked.directory.disturbance.read() == ()
    assert pool.next_end(30) is not None


def test_noise_is_no_disturbance() -> None:
    alone = WorkerRate("a", 100.0, 90.0, 110.0)
    noisy = DisturbanceCheck(0.0, alone, (WorkerRate("b", 85.0, 75.0, 95.0),))
    assert noisy.slowdown == pytest.approx(0.15)
    assert not noisy.is_above(0.05)


def test_a_damaged_file_is_named(checked: Checked) -> None:
    file = checked.directory.disturbance
    for text in ("{}", "[1]", '[{"at": 1, "alone": {}, "together": []}]'):
        file.path.parent.mkdir(exist_ok=True)
        file.path.write_text(text)
        with pytest.raises(DamagedStudyError, match=r"disturbance\.json"):
            file.read()


def test_an_hour_lies_between_checks() -> None:
    assert disturbance.SECONDS_BETWEEN == 3600

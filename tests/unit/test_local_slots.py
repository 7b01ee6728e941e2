"""The pool of worker processes: real processes, without a server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from optimizer.cluster.local_slots import LocalSlots
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError
from optimizer.machine import leftovers
from optimizer.machine.leftovers import MARK, end_leftovers
from optimizer.search.worker_pool import Task, TaskEnd, WorkerPool
from optimizer.study.events import (
    Event,
    LevelStarted,
    StepStarted,
    WorkerEvent,
    WorkerLost,
    WorkersStarted,
)
from tests.contracts.worker_pool import WorkerPoolContract
from tests.unit.fake_workers import CONFIGS, SLOTS, OpenFakeWorker, Orders
from tests.unit.studies import as_fast_as_it_is

ROOT = Path(__file__).parents[2]


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Pool:
    """A pool whose workers do what `orders` say."""

    def __init__(self, folder: Path, slots: LocalSlots, events: list[Event]) -> None:
        self.orders = Orders(folder)
        self.slots = slots
        self.events = events

    def submit(self, number: int) -> Task:
        task = Task(number, 1, CONFIGS[number])
        self.slots.submit(task)
        return task

    def end(self) -> TaskEnd:
        end = self.slots.next_end(60)
        assert end is not None
        return end

    def pid(self, slot: str) -> int:
        began = self.orders.done(slot, "began")
        wait_until(lambda: began.exists() and began.read_text())
        return int(began.read_text())

    def as_new(self) -> None:
        """Forget what earlier tests have left; processes that run go on."""
        assert all(state.task is None for state in self.slots.workers)
        self.events.clear()
        for file in self.orders.folder.iterdir():
            file.unlink()
        self.slots._most = len(self.slots.workers)
        for worker in self.slots._workers:
            worker.losses = worker.runs_alone = 0


@contextmanager
def opened(folder: Path, count: int = 2) -> Iterator[Pool]:
    events: list[Event] = []

    def watch(event: Event) -> None:
        events.append(event)

    with LocalSlots(OpenFakeWorker(Orders(folder)), SLOTS[:count], watch) as slots:
        yield Pool(folder, slots, events)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pool]:
    """One pool for all tests that leave it as it was: a process takes seconds to start."""
    with opened(tmp_path_factory.mktemp("shared")) as pool:
        assert pool.events == [WorkersStarted({slot.name: slot.location for slot in SLOTS[:2]})]
        yield pool


@pytest.fixture
def pool(shared: Pool) -> Pool:
    shared.as_new()
    return shared


class TestContract(WorkerPoolContract):
    @pytest.fixture
    def pool(self, shared: Pool) -> WorkerPool:
        shared.as_new()
        return shared.slots

    @pytest.fixture
    def config(self) -> ServingConfig:
        return CONFIGS[0]


def test_tasks_run_at_the_same_time_each_on_a_worker_of_its_own(pool: Pool) -> None:
    pool.orders.give("slot-0", "hold")
    pool.orders.give("slot-1", "hold")
    assert (pool.slots.idle, pool.slots.next_end()) == (2, None)
    first, second = pool.submit(0), pool.submit(1)
    assert pool.slots.idle == 0
    assert pool.pid("slot-0") != pool.pid("slot-1")
    assert [state.task for state in pool.slots.workers] == [first, second]
    with pytest.raises(ValueError, match="2 of 2 run one"):
        pool.submit(2)
    assert pool.slots.next_end(0.1) is None
    pool.orders.release("slot-1")
    assert pool.end() == TaskEnd(second, "slot-1", as_fast_as_it_is(CONFIGS[1]))
    assert pool.slots.idle == 1
    pool.orders.release("slot-0")
    assert pool.end() == TaskEnd(first, "slot-0", as_fast_as_it_is(CONFIGS[0]))


def test_events_of_workers_are_marked_with_worker_and_trial(pool: Pool) -> None:
    pool.submit(3)
    pool.end()
    assert pool.events == [
        WorkerEvent("slot-0", 3, StepStarted("loading the model")),
        WorkerEvent("slot-0", 3, LevelStarted(None, 1.0)),
    ]


def test_a_killed_worker_is_lost_and_started_again_with_its_next_task(pool: Pool) -> None:
    pool.orders.give("slot-0", "kill")
    task = pool.submit(0)
    end = pool.end()
    assert (end.task, end.worker, end.evaluation) == (task, "slot-0", None)
    assert end.lost == "its process ended with signal SIGKILL"
    assert WorkerLost("slot-0", 0, end.lost) in pool.events
    assert [(state.task, state.losses) for state in pool.slots.workers] == [(None, 1), (None, 0)]
    assert pool.slots.idle == 2
    before = pool.pid("slot-0")
    # The worker without a loss is preferred.
    pool.submit(0)
    pool.submit(1)
    assert {pool.end().worker, pool.end().worker} == {"slot-0", "slot-1"}
    assert pool.pid("slot-0") != before


def test_an_idle_worker_that_is_killed_is_lost_with_its_next_task(pool: Pool) -> None:
    pool.submit(0)
    pool.end()
    os.kill(pool.pid("slot-0"), signal.SIGKILL)
    wait_until(lambda: not psutil.pid_exists(pool.pid("slot-0")) or _is_zombie(pool))
    pool.submit(0)
    assert "SIGKILL" in pool.end().lost
    pool.submit(0)
    assert pool.end().lost == ""


def _is_zombie(pool: Pool) -> bool:
    return psutil.Process(pool.pid("slot-0")).status() == psutil.STATUS_ZOMBIE


@pytest.mark.slow
def test_an_error_that_would_end_a_run_ends_it(tmp_path: Path) -> None:
    with opened(tmp_path, 1) as pool:
        pool.orders.give("slot-0", "full")
        pool.submit(0)
        with pytest.raises(StorageError, match="no space left on device"):
            pool.end()


def test_a_defect_in_a_worker_is_told_as_a_loss(pool: Pool) -> None:
    pool.orders.give("slot-0", "defect")
    pool.submit(0)
    assert pool.end().lost == "its process ended with exit code 1: ZeroDivisionError: a defect"


def test_a_task_that_is_to_run_alone_waits_for_the_others(pool: Pool) -> None:
    pool.orders.give("slot-0", "hold")
    trial = pool.submit(0)
    rerun = Task(0, 1, CONFIGS[0], "saturate", alone=True)
    pool.slots.submit(rerun)
    assert pool.slots.idle == 0
    assert pool.slots.next_end(0.1) is None
    assert not pool.orders.done("slot-1", "began").exists()
    pool.orders.release("slot-0")
    assert pool.end().task == trial
    assert pool.slots.idle == 0
    assert pool.end().task == rerun
    assert pool.slots.idle == 2


def test_runs_that_show_how_fast_the_machine_is_take_the_workers_in_turn(pool: Pool) -> None:
    ran_on = []
    for _ in range(3):
        pool.slots.submit(Task(0, 1, CONFIGS[0], "saturate", alone=True))
        ran_on.append(pool.end().worker)
    assert ran_on == ["slot-0", "slot-1", "slot-0"]


def test_a_lost_run_of_the_baseline_makes_room_again(pool: Pool) -> None:
    pool.orders.give("slot-0", "kill")
    pool.slots.submit(Task(0, 1, CONFIGS[0], "saturate", alone=True))
    assert pool.end().evaluation is None
    assert pool.slots.idle == 2


def test_it_can_go_back_to_one_task_at_a_time(pool: Pool) -> None:
    pool.submit(0)
    pool.slots.one_at_a_time()
    assert pool.slots.idle == 0
    pool.end()
    assert pool.slots.idle == 1


def test_levels_that_run_together_start_when_all_workers_are_ready(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool.orders.give("slot-1", "hold")
    began, level = (pool.orders.done("slot-0", what) for what in ("began", "level"))

    def release_when_the_other_waits(event: Event) -> None:
        if event == WorkerEvent("slot-0", 0, LevelStarted(None, 1.0)):
            assert began.exists()
            time.sleep(0.2)
            assert not level.exists(), "it waits for the other"
            pool.orders.release("slot-1")

    monkeypatch.setattr(pool.slots, "_watch", release_when_the_other_waits)
    ends = pool.slots.run_together(Task(0, 1, CONFIGS[0], "saturate"))
    assert {end.worker for end in ends} == {"slot-0", "slot-1"}
    assert all(end.evaluation is not None for end in ends)


def test_a_worker_that_is_lost_does_not_keep_the_others_waiting(pool: Pool) -> None:
    pool.orders.give("slot-1", "kill")
    ends = pool.slots.run_together(Task(0, 1, CONFIGS[0], "saturate"))
    assert [end.worker for end in ends if end.evaluation is None] == ["slot-1"]
    assert len(ends) == 2


@pytest.mark.slow
def test_at_the_end_busy_and_idle_workers_are_closed_and_gone(tmp_path: Path) -> None:
    with opened(tmp_path) as pool:
        pool.submit(0)
        pool.submit(1)
        pool.end(), pool.end()
        pool.orders.give("slot-1", "hold")
        pids = [pool.pid("slot-0"), pool.pid("slot-1")]
        pool.submit(2)
        pool.submit(3)
        pool.end()
    assert not any(map(psutil.pid_exists, pids))
    assert all(pool.orders.done(slot, "closed").exists() for slot in ("slot-0", "slot-1"))


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    code = f"from tests.unit.fake_workers import hold_pool; hold_pool({str(tmp_path)!r})"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, cwd=ROOT) as parent:
        try:
            began = tmp_path / "slot-0.began"
            wait_until(lambda: began.exists() and began.read_text())
            workers = psutil.Process(parent.pid).children()
            assert len(workers) == 2
        finally:
            parent.kill()
    _, alive = psutil.wait_procs(workers, 10)
    assert alive == []
    assert (tmp_path / "slot-0.closed").exists(), "in good order"


def test_what_a_lost_worker_leaves_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "_END_SECONDS", 0.1)
    with (
        subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: "mine"}) as left,
        subprocess.Popen(["sleep", "60"], env={**os.environ, MARK: "another"}) as other,
    ):
        end_leftovers("mine")
        # Its parent has waited for it in `end_leftovers`.
        assert not psutil.pid_exists(left.pid)
        assert other.poll() is None
        other.kill()

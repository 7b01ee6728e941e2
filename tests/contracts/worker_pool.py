"""What holds for every pool of workers. `test_worker_pool` runs it on those of this process; pools
of other processes and hosts run it beside their own tests.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from optimizer.configuration.serving_config import ServingConfig
from optimizer.search.worker_pool import Task, TaskEnd, TaskKind, WorkerPool


def tasks_of(config: ServingConfig, count: int) -> list[Task]:
    """Different tasks of one configuration, of every kind in turn."""
    kinds: tuple[TaskKind, ...] = ("evaluate", "saturate", "calibrate")
    tasks = [Task(number, 1, config) for number in range(count)]
    return [replace(task, kind=kinds[task.number % 3]) for task in tasks]


def all_ends(pool: WorkerPool) -> list[TaskEnd]:
    """Wait until every submitted task has ended."""
    ends = []
    while any(state.task is not None for state in pool.workers):
        end = pool.next_end()
        assert end is not None, "a task was running"
        ends.append(end)
    return ends


class WorkerPoolContract:
    """A subclass has the fixtures `pool`, without a task, and `config`, which meets the limits."""

    def test_workers_have_names_of_their_own_and_are_idle(self, pool: WorkerPool) -> None:
        names = [state.name for state in pool.workers]
        assert len(names) == len(set(names)) == pool.idle > 0
        assert all(state.location and state.task is None for state in pool.workers)
        assert {state.losses for state in pool.workers} == {0}

    def test_each_task_ends_once_with_its_evaluation(
        self, pool: WorkerPool, config: ServingConfig
    ) -> None:
        workers = pool.idle
        submitted = tasks_of(config, workers)
        for task in submitted:
            pool.submit(task)
        assert pool.idle == 0
        running = [state.task for state in pool.workers]
        assert sorted(t.number for t in running if t is not None) == list(range(workers))
        ends = all_ends(pool)
        assert sorted(end.task.number for end in ends) == list(range(workers))
        assert {end.task for end in ends} == set(submitted)
        assert pool.idle == workers
        for end in ends:
            assert end.lost == ""
            assert end.evaluation is not None
            expected = "ok" if end.task.kind == "evaluate" else "bounded"
            assert end.evaluation.outcome == expected, end.evaluation.reason
        assert {end.worker for end in ends} == {state.name for state in pool.workers}

    def test_a_task_without_an_idle_worker_is_refused(
        self, pool: WorkerPool, config: ServingConfig
    ) -> None:
        tasks = tasks_of(config, pool.idle + 1)
        for task in tasks[:-1]:
            pool.submit(task)
        with pytest.raises(ValueError, match="idle"):
            pool.submit(tasks[-1])
        all_ends(pool)

    def test_without_a_task_nothing_ends(self, pool: WorkerPool) -> None:
        assert pool.next_end(timeout_seconds=0.01) is None

    def test_a_bound_that_cannot_be_reached_ends_the_task_early(
        self, pool: WorkerPool, config: ServingConfig
    ) -> None:
        pool.submit(Task(0, 1, config, prune_below=1e6))
        [end] = all_ends(pool)
        assert end.evaluation is not None
        assert end.evaluation.outcome == "bounded"

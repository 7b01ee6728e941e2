"""The tasks that a pool runs, what is done with their results, and the loss of workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

from optimizer.errors import WorkersLostError
from optimizer.machine.time_limit import TimeLimit
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import Failure
from optimizer.search.worker_pool import Task, TaskEnd, WorkerPool
from optimizer.study.events import Note, Watcher

LONGEST_WAIT_SECONDS = 5.0
"""After this time without a result, workers are counted again: some may have joined the pool."""

MOST_LOSSES = 3
"""A task that lost so many workers has failed: its configuration may be what ends them."""

Started = Callable[[str], None]
"""Called when a worker starts a task, with its name where there are several, else with ""."""

Then = Callable[[Evaluation, tuple[str, ...]], None]
"""Called with the result of a task and the names of the workers that it ran on, all but the last
of which were lost."""


@dataclass(frozen=True)
class _Entry:
    """A task, what to do at its start and with its result, and the workers that it lost."""

    task: Task
    started: Started
    then: Then
    lost: tuple[str, ...] = ()


class RunningTasks:
    """Tasks on the workers of a pool; one whose worker is lost runs again on another."""

    def __init__(self, pool: WorkerPool, watch: Watcher) -> None:
        self._pool = pool
        self._watch = watch
        self._waiting = deque[_Entry]()
        self._running: dict[Task, _Entry] = {}
        self._last_loss = ""

    @property
    def idle(self) -> int:
        """Number of workers that have nothing to do."""
        return max(0, self._pool.idle - len(self._waiting))

    def __len__(self) -> int:
        return len(self._waiting) + len(self._running)

    def submit(self, task: Task, then: Then, started: Started = lambda _: None) -> None:
        """Run a task as soon as a worker is idle."""
        self._waiting.append(_Entry(task, started, then))
        self._send()

    def receive(self, timeout_seconds: float, limit: TimeLimit | None = None) -> None:
        """Wait for one task to end, at most for this time, and do what follows from its result.

        Args:
            limit: after which no task is waited for.

        Raises:
            TimeIsUpError: when the limit is reached first; the tasks are not to be waited for.
            WorkersLostError: when no worker is left.
        """
        self._send()
        if not self._running and not self._pool.workers:
            raise WorkersLostError(
                f"no worker is left{self._last_loss}; rerun the same command to measure the "
                f"{len(self._waiting)} configurations that were running, and the others"
            )
        with (limit or TimeLimit()).enforced():
            end = self._pool.next_end(timeout_seconds)
        if end is None:
            return
        entry = self._running.pop(end.task)
        if end.evaluation is not None:
            entry.then(end.evaluation, (*entry.lost, end.worker))
        else:
            self._lose(entry, end)

    def _send(self) -> None:
        while self._waiting and self._pool.idle:
            entry = self._waiting.popleft()
            self._running[entry.task] = entry
            self._pool.submit(entry.task)
            entry.started(self._worker_of(entry.task))

    def _worker_of(self, task: Task) -> str:
        workers = self._pool.workers
        return next((w.name for w in workers if w.task == task and len(workers) > 1), "")

    def _lose(self, entry: _Entry, end: TaskEnd) -> None:
        """Run the task of a lost worker again, or end it where it lost too many."""
        task, lost = end.task, (*entry.lost, end.worker)
        self._last_loss = f": {end.worker} was lost: {end.lost}"
        # Where no worker is left, the run ends, and the task is none the worse for it.
        if len(lost) >= MOST_LOSSES and self._pool.workers:
            reason = f"lost {len(lost)} workers; the last one, {end.worker}: {end.lost}"
            failure = Failure("WorkerLost", transient=False, out_of_memory=False)
            entry.then(Evaluation("failed", reason, failure=failure), lost)
            return
        text = f"worker {end.worker} was lost: {end.lost}; what it measured is measured again"
        self._watch(Note(text, warning=True))
        again = replace(task, attempt=task.attempt + 1)
        self._waiting.appendleft(replace(entry, task=again, lost=lost))
        self._send()

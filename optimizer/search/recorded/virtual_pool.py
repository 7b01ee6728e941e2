"""Workers that read their results from a recorded table, in virtual time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import ONLY_WORKER
from optimizer.search.evaluator import Evaluator
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState


class VirtualPool:
    """Workers whose tasks take the seconds that their evaluations report, without waiting for them.

    Args:
        evaluator: one whose evaluations take no time of their own, such as `RecordedEvaluator`.
        workers: how many tasks run at the same time.
        seconds: virtual time at the start.

    Attributes:
        seconds: virtual time of the latest end.
    """

    def __init__(
        self, evaluator: Evaluator, slot: Slot, workers: int = 1, seconds: float = 0.0
    ) -> None:
        self._evaluator = evaluator
        self._slot = slot
        self._names = [str(n) for n in range(workers)] if workers > 1 else [ONLY_WORKER]
        self._tasks: list[Task | None] = [None] * workers
        self._idle = list(range(workers))
        self._ends: list[tuple[float, int, Evaluation]] = []
        self.seconds = seconds

    @property
    def idle(self) -> int:
        """Number of workers without a task."""
        return len(self._idle)

    @property
    def workers(self) -> Sequence[WorkerState]:
        """All workers; none is ever lost."""
        return [
            WorkerState(name, "virtual time", task)
            for name, task in zip(self._names, self._tasks, strict=True)
        ]

    def submit(self, task: Task) -> None:
        """Start a task on the first idle worker. Raises ValueError without an idle worker."""
        if not self._idle:
            raise ValueError(
                f"a task may be submitted to an idle worker only; {len(self._tasks)} run"
            )
        worker = heapq.heappop(self._idle)
        self._tasks[worker] = task
        evaluation = task.run(self._evaluator, self._slot)
        seconds = evaluation.seconds.measuring + evaluation.seconds.serving
        heapq.heappush(self._ends, (self.seconds + seconds, worker, evaluation))

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Return the task that ends next, and set the time to its end; None without a task."""
        del timeout_seconds
        if not self._ends:
            return None
        self.seconds, worker, evaluation = heapq.heappop(self._ends)
        task, self._tasks[worker] = self._tasks[worker], None
        heapq.heappush(self._idle, worker)
        assert task is not None, "a task ends once"
        return TaskEnd(task, self._names[worker], evaluation)

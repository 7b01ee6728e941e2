"""Where configurations are evaluated: a pool of workers, and the pool of this process alone.

pool = InlinePool(evaluator, slot)
pool.submit(Task(number=0, attempt=1, config=config))
end = pool.next_end()
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from optimizer.configuration.serving_config import ServingConfig
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.trial_record import ONLY_WORKER
from optimizer.search.evaluator import Evaluator

TaskKind = Literal["evaluate", "saturate", "calibrate"]
"""The method of an `Evaluator` that a task calls."""


@dataclass(frozen=True)
class Task:
    """One evaluation of a configuration.

    Attributes:
        number: of the trial; of a rerun of the baseline, that of the latest trial before it.
        attempt: 1, and one more after each loss of the worker that ran the task.
        prune_below, expected_share: see `Evaluator.evaluate`.
        alone: whether nothing else may run on the machine meanwhile.
    """

    number: int
    attempt: int
    config: ServingConfig
    kind: TaskKind = "evaluate"
    prune_below: float | None = None
    expected_share: float | None = None
    alone: bool = False

    def run(self, evaluator: Evaluator, slot: Slot) -> Evaluation:
        """Run the task on a slot."""
        match self.kind:
            case "evaluate":
                return evaluator.evaluate(self.config, slot, self.prune_below, self.expected_share)
            case "saturate":
                return evaluator.saturate(self.config, slot)
            case "calibrate":
                return evaluator.calibrate(self.config, slot)


@dataclass(frozen=True)
class TaskEnd:
    """How a task ended: with an evaluation, or with its worker lost.

    Attributes:
        worker: name of the worker.
        evaluation: None where the worker was lost.
        lost: why the worker was lost; empty where it was not.
    """

    task: Task
    worker: str
    evaluation: Evaluation | None
    lost: str = ""


@dataclass(frozen=True)
class WorkerState:
    """One worker of a pool.

    Attributes:
        name: unique in the pool.
        location: the slot or the node that it runs on, in words.
        task: that it runs; None while it is idle or is being started.
        losses: how often it was lost, and started again, so far.
    """

    name: str
    location: str
    task: Task | None = None
    losses: int = 0


class WorkerPool(Protocol):
    """Evaluates tasks, each on one worker at a time."""

    @property
    def idle(self) -> int:
        """How many tasks may be submitted now."""

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The workers that run tasks now or will again; empty when all are lost for good."""

    def submit(self, task: Task) -> None:
        """Have an idle worker run a task. Raises ValueError without an idle worker."""

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Wait for a task to end.

        Args:
            timeout_seconds: the longest to wait; None waits as long as it takes.

        Returns:
            None where no task ended in that time, or none is running.
        """


class InlinePool:
    """One worker in this process: a task runs while its end is waited for."""

    def __init__(self, evaluator: Evaluator, slot: Slot) -> None:
        self._evaluator = evaluator
        self._slot = slot
        self._task: Task | None = None

    @property
    def idle(self) -> int:
        """1 unless a task was submitted."""
        return 0 if self._task is not None else 1

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The only worker."""
        return (WorkerState(ONLY_WORKER, "this machine", self._task),)

    def submit(self, task: Task) -> None:
        """Keep a task until its end is waited for. Raises ValueError where there is one."""
        if self._task is not None:
            raise ValueError(
                f"a task may be submitted to an idle worker only; trial {self._task.number} runs"
            )
        self._task = task

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Run the submitted task to its end, however long that takes; None without a task."""
        del timeout_seconds
        if self._task is None:
            return None
        try:
            return TaskEnd(self._task, ONLY_WORKER, self._task.run(self._evaluator, self._slot))
        finally:
            self._task = None

"""The pool of a study's workers on a Ray cluster.

A worker that is lost is started again where the cluster has room. Its task ends as lost, and the
coordinator decides what becomes of it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from optimizer.cluster.ray_actors import CallEnd, Lost, Member, RayActors, Stage
from optimizer.cluster.ray_cluster import NodeSlot
from optimizer.cluster.ray_worker import OpenOnNode, Raised, Returned
from optimizer.errors import RequirementError, RunError
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.evaluator import Evaluator
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState
from optimizer.study.events import Event, Note, Watcher, WorkerLost, WorkersStarted

_STEP_SECONDS = 1.0
_PATIENCE_SECONDS = 600.0
"""How long a run goes on without any worker, in case that nodes come back."""

_LOSSES = 3
"""Workers that one call may lose before the run ends."""


def _run_task(evaluator: Evaluator, slot: Slot, task: Task) -> Evaluation:
    return task.run(evaluator, slot)


class RayPool:
    """Workers on the slots of a cluster, a `WorkerPool`; a context manager that ends them.

    Before the search, one worker prepares the study. While no task runs, `evaluate` uses one worker
    alone.

    Args:
        offered: returns the slots that the cluster offers now.
        watch: receives the events of all workers, those of tasks as `WorkerEvent`.
    """

    def __init__(self, offered: Callable[[], Iterable[NodeSlot]], watch: Watcher) -> None:
        self._actors = RayActors(offered, self._started, self._tell)
        self._opening: OpenOnNode | None = None
        self._ends = deque[TaskEnd]()
        self._announced: set[str] | None = None
        self.watch = watch

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        self._actors.close()

    @property
    def idle(self) -> int:
        """How many tasks may be submitted now."""
        return len(self._actors.in_stage("idle"))

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The workers that run, start or may come back; empty when all are lost for good."""
        if time.monotonic() - self._actors.working_at > _PATIENCE_SECONDS:
            return ()
        return [
            WorkerState(name, f"node {member.slot.node}", member.task, member.losses)
            for name, member in self._actors.members.items()
        ]

    @contextmanager
    def searching(self) -> Iterator[RayPool]:
        """Tell of workers as they become idle or are lost, within the block."""
        self._announced = set()
        self._announce()
        try:
            yield self
        finally:
            self._announced = None

    def submit(self, task: Task) -> None:
        """Have an idle worker run a task. Raises ValueError without an idle worker."""
        idle = self._actors.in_stage("idle")
        if not idle:
            raise ValueError(f"a task may be submitted to an idle worker only; got {task.number}")
        member = idle[0]
        member.stage, member.task = "busy", task
        self._actors.call(
            member, "evaluate", (_run_task, task), lambda end: self._end_task(member, task, end)
        )

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Wait for a task to end; without one that runs, for a worker to be idle.

        Args:
            timeout_seconds: the longest to wait; None waits as long as it takes.

        Returns:
            None where no task ended in that time, or none is running.
        """
        end = math.inf if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not self._ends and (self._actors.in_stage("busy") or not self.idle) and self.workers:
            left = min(_STEP_SECONDS, end - time.monotonic())
            if left <= 0:
                return None
            self._actors.advance(left)
        return self._ends.popleft() if self._ends else None

    def on_a_node(
        self,
        function: Callable[..., Any],
        *arguments: Any,
        refuse: Callable[[Any], str] = lambda _: "",
    ) -> Any:
        """Run `function(context, *arguments)` on the node of a worker; return its value.

        Args:
            refuse: returns why a node with this value takes no part in the study; "" if it does.

        Raises:
            RequirementError: no node takes part; with the reason of each.
            RunError: several workers were lost, one after the other.
        """
        while True:
            member, value = self._on_one("started", "call", function, *arguments)
            if not (reason := refuse(value)):
                return value
            self._actors.refuse(member, reason)

    def open_one(self, opening: OpenOnNode) -> Any:
        """Open one worker before the others; return the opening's value. Raises as `evaluate`."""
        member, value = self._on_one("started", "open", opening)
        member.stage = "idle"
        return value

    def open_others(self, opening: OpenOnNode) -> None:
        """Open the other workers, and those that come later, as soon as they have started."""
        self._opening = opening
        for member in self._actors.in_stage("started"):
            self._started(member)

    def evaluate(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run `function(evaluator, slot, *arguments)` on one worker; return its value.

        Raises:
            OptimizerError: as the function does.
            RunError: several workers were lost, one after the other.
        """
        return self._on_one("idle", "evaluate", function, *arguments)[1]

    def _tell(self, event: Event) -> None:
        self.watch(event)

    def _announce(self) -> None:
        """Tell of all workers that have run, where one of them is new."""
        if self._announced is None:
            return
        opened = self._actors.in_stage("idle", "busy", "lost")
        nodes = {each.slot.name: f"node {each.slot.node}" for each in opened}
        if not set(nodes) <= self._announced:
            self._announced |= set(nodes)
            self.watch(WorkersStarted(nodes))

    def _tell_of_loss(self, member: Member, reason: str, task: Task | None = None) -> None:
        name = member.slot.name
        if self._announced is not None and name in self._announced:
            self.watch(WorkerLost(name, task.number if task is not None else None, reason))
        if task is None:
            self.watch(Note(f"worker {name} was lost: {reason}", warning=True))

    def _on_one(self, stage: Stage, method: str, *arguments: Any) -> tuple[Member, Any]:
        """Call the first worker in a stage; the next one when it is lost."""
        reason = ""
        for _ in range(_LOSSES):
            member = self._first(stage)
            ends: list[CallEnd] = []
            self._actors.call(member, method, arguments, ends.append)
            while not ends:
                self._actors.advance(_STEP_SECONDS)
            match ends[0]:
                case Returned(value):
                    return member, value
                case Raised(error):
                    raise error
                case Lost(reason):
                    self._tell_of_loss(member, reason)
        raise RunError(f"{_LOSSES} workers were lost one after the other; the last one: {reason}")

    def _first(self, stage: Stage) -> Member:
        """Wait for a worker in a stage."""
        self._actors.advance(0.0)
        while not (there := self._actors.in_stage(stage)):
            if not self.workers:
                reasons = "".join(f"\n  {text}" for text in self._actors.refused.values())
                raise RequirementError(f"no node of the cluster runs a worker{reasons}")
            self._actors.advance(_STEP_SECONDS)
        return there[0]

    def _started(self, member: Member) -> None:
        if self._opening is None:
            return

        def opened(end: CallEnd) -> None:
            match end:
                case Returned():
                    member.stage = "idle"
                    self._announce()
                case Raised(error):
                    self._actors.refuse(member, str(error))
                case Lost(reason):
                    self._tell_of_loss(member, reason)

        member.stage = "opening"
        self._actors.call(member, "open", (self._opening,), opened)

    def _end_task(self, member: Member, task: Task, end: CallEnd) -> None:
        member.task = None
        name = member.slot.name
        match end:
            case Returned(evaluation):
                member.stage = "idle"
                self._ends.append(TaskEnd(task, name, evaluation))
            case Raised(error):
                raise error
            case Lost(reason):
                self._tell_of_loss(member, reason, task)
                self._ends.append(TaskEnd(task, name, None, lost=reason))

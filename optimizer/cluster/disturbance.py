"""Slots that are checked for disturbance: the baseline alone, and on all slots at the same time.

Trials at the same time share memory bandwidth, caches, power and heat, however well their cores and
GPUs are kept apart. How much that costs is measured before the first trial, and every hour.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from optimizer.cluster.local_slots import LocalSlots
from optimizer.configuration.serving_config import ServingConfig
from optimizer.measurement.disturbance import NOTABLE_SLOWDOWN, DisturbanceCheck, WorkerRate
from optimizer.search.worker_pool import Task, TaskEnd, WorkerState
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import DisturbanceCheckStarted, Note, Watcher

SECONDS_BETWEEN = 3600.0


class CheckedSlots:
    """A `WorkerPool` that goes back to one trial at a time where trials disturb each other.

    Args:
        baseline: that is saturated.
        most_slowdown: share of its rate that a worker may lose; None only warns.
    """

    def __init__(
        self,
        slots: LocalSlots,
        baseline: ServingConfig,
        directory: StudyDirectory,
        watch: Watcher,
        most_slowdown: float | None = None,
    ) -> None:
        self._slots = slots
        self._baseline = baseline
        self._file = directory.disturbance
        self._watch = watch
        self._most_slowdown = most_slowdown
        self._due_at = time.monotonic()

    @property
    def idle(self) -> int:
        """How many tasks may be submitted now; none while a check waits for those that run."""
        running = any(each.task is not None for each in self.workers)
        return 0 if running and self._due else self._slots.idle

    @property
    def workers(self) -> Sequence[WorkerState]:
        """The workers of the slots."""
        return self._slots.workers

    def submit(self, task: Task) -> None:
        """Have an idle worker run a task, after the check where one is due.

        Raises:
            ValueError: without an idle worker.
            StorageError: when the result of the check cannot be written.
        """
        if self._due:
            self._check(task.number)
        self._slots.submit(task)

    def next_end(self, timeout_seconds: float | None = None) -> TaskEnd | None:
        """Wait for a task to end, see `WorkerPool.next_end`."""
        return self._slots.next_end(timeout_seconds)

    @property
    def _due(self) -> bool:
        return time.monotonic() >= self._due_at

    def _check(self, number: int) -> None:
        """Saturate the baseline on one slot and then on all."""
        self._due_at = time.monotonic() + SECONDS_BETWEEN
        task = Task(number, 1, self._baseline, "saturate")
        self._watch(DisturbanceCheckStarted(self._baseline, len(self.workers)))
        self._slots.submit(replace(task, alone=True))
        alone, together = self._slots.next_end(), self._slots.run_together(task)
        assert alone is not None, "a task was submitted"
        ends = [alone, *together]
        if failed := [_why_not(end) for end in ends if not _rates(end)]:
            text = f"whether trials disturb each other could not be measured: {failed[0]}"
            self._watch(Note(text, warning=True))
            return
        first, *rates = [rate for end in ends for rate in _rates(end)]
        check = DisturbanceCheck(time.time(), first, tuple(rates))
        self._file.add(check)
        self._judge(check)

    def _judge(self, check: DisturbanceCheck) -> None:
        """Say what the check shows; go back to one trial at a time above the user's limit."""
        most, notable = self._most_slowdown, check.is_above(NOTABLE_SLOWDOWN)
        too_much = most is not None and check.is_above(most)
        if too_much:
            self._slots.one_at_a_time()
            self._due_at = float("inf")
            consequence = (
                f"the slowest loses {check.slowdown:.0%}, and at most {most:.0%} was allowed "
                "(--max-disturbance): one trial at a time from now on"
            )
        elif notable:
            consequence = (
                f"the slowest loses {check.slowdown:.0%}: trials disturb each other; only the "
                "confirmation is measured alone"
            )
        else:
            consequence = "trials do not disturb each other notably"
        self._watch(
            Note(f"{check.text}: {consequence}", warning=notable or too_much, trouble=too_much)
        )


def _rates(end: TaskEnd) -> list[WorkerRate]:
    """Return the saturation rate of a run; none where it failed."""
    measurement = end.evaluation.measurement if end.evaluation is not None else None
    levels = measurement.levels if measurement is not None else ()
    return [WorkerRate(end.worker, *level.rate) for level in levels if level.kind == "saturation"]


def _why_not(end: TaskEnd) -> str:
    return end.evaluation.reason if end.evaluation is not None else end.lost

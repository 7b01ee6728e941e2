"""Messages to a worker process: what it is opened with, its tasks, and the start of a level."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from optimizer.machine.slots import Slot
from optimizer.search.evaluator import Evaluator
from optimizer.search.worker_pool import Task
from optimizer.study.events import Watcher

OpenWorker = Callable[[Slot, Watcher], AbstractContextManager[Evaluator]]
"""Opens the evaluator of one worker. It can be pickled."""


@dataclass(frozen=True)
class Opening:
    """What a worker is opened with.

    Attributes:
        predecessor: mark of the lost worker whose slot this is; what is left of it ends first.
    """

    open_worker: OpenWorker
    slot: Slot
    predecessor: str | None


@dataclass(frozen=True)
class WorkerOrder:
    """A task of a worker.

    Attributes:
        waits: whether its first load level waits for a `Go`, so that it starts with others.
    """

    task: Task
    waits: bool = False


@dataclass(frozen=True)
class Go:
    """All levels that were to start together are ready."""

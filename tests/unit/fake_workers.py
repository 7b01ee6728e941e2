"""Workers in real processes, without a server: files in a folder tell them what to do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from optimizer.cluster.local_slots import LocalSlots
from optimizer.configuration.serving_config import ServingConfig
from optimizer.errors import StorageError
from optimizer.machine.slots import Slot
from optimizer.measurement.evaluation import Evaluation
from optimizer.search.worker_pool import Task
from optimizer.study.events import LevelStarted, StepStarted, Watcher
from tests.unit.studies import as_fast_as_it_is, bounded, four_points

SPACE = four_points()
CONFIGS = [SPACE.config(SPACE.at(row)) for row in range(len(SPACE))]
_CORES = sorted(os.sched_getaffinity(0))
SLOTS = [Slot((own,), (own,), (), f"slot-{n}") for n in range(3) for own in [_CORES[-(n % 2)]]]
_PATIENCE_SECONDS = 30.0


@dataclass(frozen=True)
class Orders:
    """What a worker does with its next task: the name of a file, which it removes.

    hold: waits until the file is gone. kill: ends by SIGKILL. full: the disk is full. defect: an
    error that is none of ours.
    """

    folder: Path

    def give(self, slot: str, order: str) -> None:
        (self.folder / f"{slot}.{order}").touch()

    def release(self, slot: str) -> None:
        (self.folder / f"{slot}.hold").unlink()

    def take(self, slot: str, order: str) -> bool:
        file = self.folder / f"{slot}.{order}"
        return file.exists() and not file.unlink()  # type: ignore[func-returns-value]

    def done(self, slot: str, what: str) -> Path:
        return self.folder / f"{slot}.{what}"


@dataclass(frozen=True)
class FakeWorker:
    """The evaluator of one worker."""

    orders: Orders
    slot: Slot
    watch: Watcher

    def evaluate(
        self,
        config: ServingConfig,
        slot: Slot,
        prune_below: float | None = None,
        expected_share: float | None = None,
    ) -> Evaluation:
        self._run()
        return bounded(100) if prune_below is not None else as_fast_as_it_is(config)

    def saturate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        self._run()
        return bounded(100)

    def calibrate(self, config: ServingConfig, slot: Slot) -> Evaluation:
        return self.saturate(config, slot)

    def _run(self) -> None:
        name, orders = self.slot.name, self.orders
        self.watch(StepStarted("loading the model"))
        orders.done(name, "began").write_text(str(os.getpid()))
        end = time.monotonic() + _PATIENCE_SECONDS
        while (orders.folder / f"{name}.hold").exists():
            assert time.monotonic() < end, "never released"
            time.sleep(0.01)
        if orders.take(name, "kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if orders.take(name, "full"):
            raise StorageError("cannot write x: no space left on device")
        if orders.take(name, "defect"):
            raise ZeroDivisionError("a defect")
        self.watch(LevelStarted(None, 1.0))
        orders.done(name, "level").touch()


@dataclass(frozen=True)
class OpenFakeWorker:
    """Opens `FakeWorker`s; a file tells that one was closed in good order."""

    orders: Orders

    @contextmanager
    def __call__(self, slot: Slot, watch: Watcher) -> Iterator[FakeWorker]:
        try:
            yield FakeWorker(self.orders, slot, watch)
        finally:
            self.orders.done(slot.name, "closed").touch()


def hold_pool(folder: str) -> None:
    """Hold a pool of two workers, of which one is busy, until this process is killed."""
    orders = Orders(Path(folder))
    orders.give("slot-0", "hold")
    with LocalSlots(OpenFakeWorker(orders), SLOTS[:2], lambda _: None) as pool:
        pool.submit(Task(0, 1, CONFIGS[0]))
        pool.next_end()

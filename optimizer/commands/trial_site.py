"""Where the trials of a run are measured: on this machine, or on the nodes of a Ray cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Protocol

from optimizer.cluster.choice import ClusterChoice, require_ray
from optimizer.cluster.disturbance import CheckedSlots
from optimizer.cluster.local_slots import LocalSlots
from optimizer.commands.run_context import RunContext, open_space, require_machine
from optimizer.commands.worker import (
    OpenServedWorker,
    chosen_slots,
    idle_gpus_note,
    require_space_of_slot,
)
from optimizer.errors import UsageError
from optimizer.machine.cores import keep_to
from optimizer.machine.fingerprint import Machine
from optimizer.machine.slots import MachineSlots, Slot
from optimizer.search.evaluator import LiveEvaluator, PhaseEvaluator
from optimizer.search.prepared import Prepared
from optimizer.search.worker_pool import InlinePool, WorkerPool
from optimizer.space_file.reader import Space
from optimizer.study.directory import StudyDirectory
from optimizer.study.events import Note, Watcher


class TrialSite(Protocol):
    """Where a run reads its space, prepares it, and measures."""

    @property
    def slots(self) -> MachineSlots | None:
        """Slots of this machine for trials at the same time."""

    def read_space(self, space: Path | Space) -> Space:
        """Read a space for the hardware of a trial. Raises as `open_space` does."""

    def require_machine(self, space: Space, directory: StudyDirectory) -> tuple[Slot, Machine]:
        """Check the machine that a study is measured on. Raises RequirementError."""

    def note(self, space: Space) -> Note | None:
        """Return what is to be said of a run there."""

    def evaluator(
        self, run: RunContext, watch: Watcher
    ) -> AbstractContextManager[tuple[PhaseEvaluator, Prepared]]:
        """Prepare the space; yield what measures alone."""

    def pool(
        self, run: RunContext, prepared: Prepared, watch: Watcher
    ) -> AbstractContextManager[WorkerPool]:
        """Yield the workers of the search, within `evaluator`."""


class ThisMachine:
    """This machine: as a whole, or in slots for trials at the same time.

    Args:
        most_slowdown: share of its rate that a slot may lose to the others, see `CheckedSlots`.
    """

    def __init__(self, slots: MachineSlots | None, most_slowdown: float | None) -> None:
        self._slots = slots
        self._most_slowdown = most_slowdown
        self._evaluator: LiveEvaluator | None = None

    @property
    def slots(self) -> MachineSlots | None:
        """Slots for trials at the same time; None for the machine as a whole."""
        return self._slots

    @property
    def _unused_cores(self) -> tuple[int, ...]:
        return self._slots.unused_cores if self._slots is not None else ()

    def read_space(self, space: Path | Space) -> Space:
        """Read a space, see `TrialSite.read_space`."""
        read = open_space(space, hardware=self._slots.hardware if self._slots else None)
        if self._slots is not None:
            require_space_of_slot(read, self._slots)
        return read

    def require_machine(self, space: Space, directory: StudyDirectory) -> tuple[Slot, Machine]:
        """Check this machine, see `TrialSite.require_machine`."""
        del directory
        return require_machine(space, self._slots)

    def note(self, space: Space) -> Note | None:
        """Return a note of GPUs that stay idle."""
        return idle_gpus_note(space) if self._slots is None else None

    @contextmanager
    def evaluator(
        self, run: RunContext, watch: Watcher
    ) -> Iterator[tuple[PhaseEvaluator, Prepared]]:
        """Prepare the space and measure in this process."""
        with run.evaluator(watch) as (evaluator, prepared):
            self._evaluator = evaluator
            yield evaluator, prepared

    @contextmanager
    def pool(self, run: RunContext, prepared: Prepared, watch: Watcher) -> Iterator[WorkerPool]:
        """Yield the workers of the search: this process, or one on each slot."""
        evaluator = self._evaluator
        assert evaluator is not None, "the space was prepared"
        slots = self._slots.slots if self._slots is not None else ()
        if len(slots) < 2:
            yield InlinePool(evaluator, run.slot)
            return
        # The slot of this process is that of the first worker now.
        evaluator.session.stop()
        opening = OpenServedWorker(run, prepared.files)
        with LocalSlots(opening, slots, watch) as workers, keep_to(self._unused_cores):
            yield CheckedSlots(
                workers,
                prepared.space.config(prepared.space.baseline),
                run.directory,
                watch,
                self._most_slowdown,
            )


@contextmanager
def open_site(
    watch: Watcher,
    cluster: ClusterChoice | None = None,
    gpus: str | None = None,
    slots: int | None = None,
    max_disturbance_percent: float | None = None,
) -> Iterator[TrialSite]:
    """Open the site that the options of `run` choose.

    Args:
        watch: receives what happens before the run has watchers of its own.

    Raises:
        UsageError: options that do not go together, or a cluster that cannot be used.
        RequirementError: Ray is needed and not installed, or GPUs without a driver.
    """
    local = chosen_slots(gpus, slots)
    if max_disturbance_percent is not None and local is None:
        raise UsageError(
            "--max-disturbance: needs trials at the same time, by --gpus or --slots 2 or more; got "
            f"{max_disturbance_percent:g}"
        )
    if cluster is None:
        share = max_disturbance_percent / 100 if max_disturbance_percent is not None else None
        yield ThisMachine(local, share)
        return
    if local is not None:
        raise UsageError(
            "--gpus and --slots: must be left out with --cluster, whose GPUs Ray gives"
        )
    require_ray()
    # Only here, so that no other run imports Ray.
    from optimizer.commands.cluster import open_cluster

    with open_cluster(cluster, watch) as nodes:
        yield nodes

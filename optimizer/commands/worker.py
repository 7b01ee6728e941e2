"""The evaluator of one of several workers, and the slots that they have on this machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from optimizer.commands.run_context import RunContext
from optimizer.configuration.hardware import counted_gpus
from optimizer.configuration.hosting import RemoteHost
from optimizer.configuration.serving_config import ArtifactSpec
from optimizer.errors import UsageError
from optimizer.machine.gpus import present_gpus
from optimizer.machine.slots import MachineSlots, Slot, core_slots, gpu_slots
from optimizer.search.evaluator import LiveEvaluator
from optimizer.space_file.reader import Space
from optimizer.study.events import Note, Watcher
from optimizer.triton.session import ModelFiles


@dataclass(frozen=True)
class OpenServedWorker:
    """Opens what serves and measures configurations in one worker. It can be pickled.

    Attributes:
        run: of the coordinator.
        files: model files by artefact, as the prepare phase built them.
    """

    run: RunContext
    files: Mapping[ArtifactSpec, ModelFiles]

    @contextmanager
    def __call__(self, slot: Slot, watch: Watcher) -> Iterator[LiveEvaluator]:
        """Open the evaluator of a slot; stop its server and load client in the end."""
        own = replace(self.run, slot=slot, directory=self.run.directory.of_worker(slot.name))
        with own.evaluator_of(self.files, watch) as evaluator:
            yield evaluator


def chosen_slots(gpus: str | None, count: int | None) -> MachineSlots | None:
    """Return the slots that --gpus or --slots chooses; None for the machine as a whole.

    Raises:
        UsageError: for both options, or what this machine does not have.
        RequirementError: for GPUs without a driver.
    """
    if gpus is None:
        return core_slots(count) if count is not None and count > 1 else None
    if count is not None:
        raise UsageError(
            f"--slots: must be left out with --gpus, which has a slot for each GPU; got {count}"
        )
    return gpu_slots(gpus)


def idle_gpus_note(space: Space) -> Note | None:
    """Return how GPUs like the only one in use could be used too; None where there are none."""
    used = space.search_space.hardware.gpus
    same = [gpu.name for gpu in present_gpus() if len(used) == 1 and gpu.name == used[0].name]
    if len(same) < 2:
        return None
    return Note(
        f"this machine has {counted_gpus(same)}, of which one is used: run --gpus with their "
        "numbers, or all, measures a configuration on each at the same time"
    )


def require_space_of_slot(space: Space, slots: MachineSlots) -> None:
    """Check that a space is that of one slot, and that its server can run once on each.

    Raises:
        UsageError: where it is not.
    """
    option = "--gpus" if slots.hardware.gpus else "--slots"
    if isinstance(space.host, RemoteHost):
        raise UsageError(
            f"{option}: must be left out with server.launcher remote, as each slot has a server of "
            f"its own; got the server at {space.host.grpc}"
        )
    own = space.search_space.hardware
    if own.gpus and option == "--slots":
        raise UsageError(
            "--slots: must be left out where trials run on GPUs: use --gpus, with a slot for each"
        )
    if not own.gpus and option == "--gpus":
        raise UsageError(
            "--gpus: must be left out with server.gpus none; with server.gpus all, each trial has "
            "the GPU of its slot"
        )
    if own.cores != slots.hardware.cores:
        raise UsageError(
            f"{option}: must be left out for a space that was read for {own.cores} server cores, "
            f"as a slot has {slots.hardware.cores}: give the path of the space file instead"
        )

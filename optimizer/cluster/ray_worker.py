"""The actor of a worker: on its node, it holds a server and a load client of its own.

Its calls are generators. They yield the events of a run as these occur, and last what was returned
or raised, so that one stream carries both in their order.
"""

from __future__ import annotations

import importlib.metadata
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from typing import Any

import ray

from optimizer.cluster.ray_cluster import NodeSlot
from optimizer.cluster.worker_logs import own_logs
from optimizer.configuration.hardware import Hardware
from optimizer.errors import OptimizerError, RequirementError
from optimizer.machine.slots import (
    MachineSlots,
    Slot,
    core_slots,
    gpu_slots,
    local_hardware,
    local_slot,
)
from optimizer.measurement.evaluation import Evaluation
from optimizer.study.events import Event, Watcher, WorkerLogsRead


@dataclass(frozen=True)
class Returned:
    """The end of a call that returned a value."""

    value: Any


@dataclass(frozen=True)
class Raised:
    """The end of a call that raised one of this package's errors."""

    error: OptimizerError


@dataclass(frozen=True)
class NodeContext:
    """What a worker has on its node.

    Attributes:
        slots: of the node, of which it has one; None where it has the node as a whole.
        watch: passes events to the coordinator.
    """

    slot: Slot
    slots: MachineSlots | None
    watch: Watcher

    @property
    def hardware(self) -> Hardware:
        """What a trial may use."""
        if self.slots is not None:
            return self.slots.hardware
        return replace(local_hardware(), gpus=())


OpenOnNode = Callable[[NodeContext], AbstractContextManager[tuple[Any, Any]]]
"""Opens what evaluates on a node; yields that, and a value for the coordinator. Picklable."""


class NodeWorker:
    """Evaluates on one slot of a node, for one coordinator; Ray ends it with the coordinator.

    Args:
        version: of the coordinator's optimizer, which must be the node's.
    """

    def __init__(self, node_slot: NodeSlot, version: str) -> None:
        # Ray sets it for the tasks of its own, and servers would inherit it.
        os.environ.pop("OMP_NUM_THREADS", None)
        self._node_slot = node_slot
        self._version = version
        # The kernel ends server and client with the thread that started them, so all work is done
        # on one that lives as long as this process. Ray's own thread passes the events on.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._stack = ExitStack()
        self._messages = SimpleQueue[Event | None]()
        self._context: NodeContext | None = None
        self._evaluator: Any = None

    def call(self, function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Run `function(context, *arguments)` on the node."""
        yield from self._stream(lambda: function(self._node_context(), *arguments))

    def open(self, opening: OpenOnNode) -> Iterator[Any]:
        """Open what evaluates; return the opening's value."""

        def run() -> Any:
            self._evaluator, value = self._stack.enter_context(opening(self._node_context()))
            return value

        yield from self._stream(run)

    def evaluate(self, function: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
        """Run `function(evaluator, slot, *arguments)` on the node; tell the logs of a failure."""

        def run() -> Any:
            slot = self._node_context().slot
            value = function(self._evaluator, slot, *arguments)
            if isinstance(value, Evaluation) and value.outcome == "failed":
                self._messages.put(WorkerLogsRead(slot.name, own_logs()))
            return value

        yield from self._stream(run)

    def close(self) -> None:
        """Stop the server and the load client."""
        self._thread.submit(self._stack.close).result()

    def _stream(self, run: Callable[[], Any]) -> Iterator[Any]:
        future = self._thread.submit(run)
        future.add_done_callback(lambda _: self._messages.put(None))
        while (event := self._messages.get()) is not None:
            yield event
        try:
            yield Returned(future.result())
        except OptimizerError as error:
            yield Raised(error)

    def _node_context(self) -> NodeContext:
        if self._context is None:
            if self._version != installed_version():
                raise RequirementError(
                    f"optimizer {installed_version()} is installed there, and the coordinator's is "
                    f"{self._version}",
                    "install the same version on all nodes",
                )
            slot, slots = slot_on_this_node(self._node_slot, _gpu_ids())
            self._context = NodeContext(slot, slots, self._messages.put)
        return self._context


def installed_version() -> str:
    """Return the version of this package that is installed here."""
    return importlib.metadata.version("triton-cost-optimizer")


def _gpu_ids() -> list[str]:
    """Return the ids of the GPUs that Ray has given to this process."""
    ids: list[str] = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    return ids


def slot_on_this_node(node_slot: NodeSlot, gpu_ids: list[str]) -> tuple[Slot, MachineSlots | None]:
    """Return the slot of this machine that a worker uses, and all of its slots.

    Args:
        gpu_ids: index or UUID of its GPU, as Ray numbers them; none without GPUs.

    Returns:
        None for all slots where the worker has the machine as a whole.

    Raises:
        RequirementError: the machine has no such GPU, or no driver.
        UsageError: it has fewer physical cores than slots.
    """
    if gpu_ids:
        [gpu_id], machine = gpu_ids, gpu_slots("all")
        own = [
            slot
            for number, slot in enumerate(machine.slots)
            if gpu_id in (str(number), *slot.gpu_uuids)
        ]
        if not own:
            present = ", ".join(uuid for slot in machine.slots for uuid in slot.gpu_uuids)
            raise RequirementError(
                f"Ray gave GPU {gpu_id} to the worker; the machine has {present}"
            )
        return _named(own[0], node_slot), machine
    if node_slot.count == 1:
        return _named(local_slot(), node_slot), None
    machine = core_slots(node_slot.count)
    return _named(machine.slots[node_slot.index], node_slot), machine


def _named(slot: Slot, node_slot: NodeSlot) -> Slot:
    return replace(slot, name=node_slot.name)

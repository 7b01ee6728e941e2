"""A Ray cluster: the connection to it, and the slots that its nodes offer."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from threading import current_thread, main_thread
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from optimizer.errors import UsageError

_ACCELERATOR_TYPE = "accelerator_type:"
"""Prefix of the resource by which Ray names the accelerators of a node."""

_KEEP_CHILDREN = {"RAY_kill_child_processes_on_worker_exit": "0"}
"""Ray would kill the server of a worker that ends, and leave the processes of its Python models.
The kernel has the server end properly instead, see `optimizer.machine.child_shim`."""


@dataclass(frozen=True)
class NodeSlot:
    """What one worker occupies of a node.

    Attributes:
        node_id: Ray's; a node that comes back has another.
        node: name of the node, unique in the cluster.
        index, count: which of the node's slots it is, from 0, and how many these are.
        accelerator_type: as Ray names it, such as "A10G"; None for a node without.
        cpus, gpus, resources: that the worker requires of Ray; it uses all CPUs of the node, shared
            equally among the node's workers.
    """

    node_id: str
    node: str
    index: int
    count: int
    accelerator_type: str | None
    cpus: int
    gpus: int
    resources: tuple[tuple[str, float], ...]

    @property
    def name(self) -> str:
        """Name of its worker: that of the node, with a number where it has several."""
        return self.node if self.count == 1 else f"{self.node}/{self.index}"

    def actor_options(self) -> dict[str, Any]:
        """Return Ray's options of the slot's actor."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "resources": dict(self.resources),
            "accelerator_type": self.accelerator_type,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(self.node_id, soft=False),
            # A lost worker is started again by the pool, which runs its task elsewhere meanwhile.
            "max_restarts": 0,
            "max_task_retries": 0,
            "runtime_env": {"env_vars": _KEEP_CHILDREN},
        }


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Connect this process to a cluster, unless it is connected already.

    Args:
        address: host:port of the cluster's head, or "auto" for the cluster of this machine.

    Raises:
        UsageError: no cluster answers there, or it runs another version of Ray or Python.
    """
    if ray.is_initialized():
        yield
        return
    if address.startswith("ray://"):
        raise UsageError(
            f"--cluster: must be auto or HOST:PORT; got {address}, the address of Ray's client: "
            "start the run on a node of the cluster, for example with `ray job submit`"
        )
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        if current_thread() is main_thread():
            # Ray replaces the handler, and a run would end without its message.
            signal.signal(signal.SIGTERM, handler)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UsageError(
            f"--cluster: no Ray cluster can be used at {address}; start one with "
            f"`ray start --head`. Ray: {error}"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def accelerator_types(worker_resources: Mapping[str, float]) -> list[str]:
    """Return the types of accelerators of the nodes that have room for a worker, sorted."""
    slots = node_slots(ray.nodes(), worker_resources)
    return sorted({each.accelerator_type for each in slots if each.accelerator_type is not None})


def offered_slots(
    worker_resources: Mapping[str, float], accelerator_type: str | None
) -> list[NodeSlot]:
    """Return the slots that the cluster's living nodes offer for one kind of hardware.

    Args:
        worker_resources: Ray resources that a worker requires besides CPUs and a GPU.
        accelerator_type: of the nodes; None for nodes without accelerators.
    """
    slots = node_slots(ray.nodes(), worker_resources)
    return [slot for slot in slots if slot.accelerator_type == accelerator_type]


def node_slots(
    nodes: Iterable[Mapping[str, Any]], worker_resources: Mapping[str, float]
) -> list[NodeSlot]:
    """Return the slots of living nodes: one for each GPU, or the whole node without GPUs.

    A custom resource limits them, or divides a node without GPUs into several slots.

    Args:
        nodes: as `ray.nodes` describes them.
    """
    living = [node for node in nodes if node["Alive"]]
    names = [node["NodeName"] for node in living]
    slots = []
    for node in living:
        own, name = node["Resources"], node["NodeName"]
        if names.count(name) > 1:
            name = f"{name}-{node['NodeID'][:6]}"
        gpus = int(own.get("GPU", 0))
        wholes = [int(own.get(each, 0) / amount) for each, amount in worker_resources.items()]
        wholes += [gpus] if gpus else []
        count = min(wholes) if wholes else min(1, int(own.get("CPU", 0)))
        slots += [
            NodeSlot(
                node["NodeID"],
                name,
                index,
                count,
                _accelerator_type(own),
                int(own.get("CPU", 0)) // count,
                min(1, gpus),
                tuple(sorted(worker_resources.items())),
            )
            for index in range(count)
        ]
    return slots


def _accelerator_type(resources: Iterable[str]) -> str | None:
    types = [each for each in resources if each.startswith(_ACCELERATOR_TYPE)]
    return types[0].removeprefix(_ACCELERATOR_TYPE) if types else None

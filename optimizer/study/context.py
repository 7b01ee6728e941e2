"""What all measurements of a study share."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.machine.slots import Slot
from optimizer.measurement.cost import Demand, Price
from optimizer.workload.streams import Workload


@dataclass(frozen=True)
class StudyContext:
    """Price, demand and slot of a study.

    Attributes:
        limit_names: names of the constraints, one for each stream's latency limit.
        machine: digest of the machine's fingerprint.
        confirm_requests: most requests at the capacity of a finalist, in all rounds together.
        extra_limits_ms: latency limits beside the workload's own, each with its own objective.
    """

    price: Price
    demand: Demand
    limit_names: tuple[str, ...]
    slot: Slot
    machine: str
    confirm_requests: int
    extra_limits_ms: tuple[float, ...] = ()


def limit_names(workload: Workload) -> tuple[str, ...]:
    """Return the constraint names of a workload's latency limits."""
    return tuple(f"latency.{stream.name}" for stream in workload.streams)

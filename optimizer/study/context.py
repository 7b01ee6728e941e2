"""What every measurement of a study has in common."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.machine.slots import Slot
from optimizer.measurement.cost import Demand, Price
from optimizer.workload.streams import Workload


@dataclass(frozen=True)
class StudyContext:
    """Prices, demand and place of a study.

    Attributes:
        limit_names: of the constraints, one for each stream's latency limit.
        machine: digest of the machine's fingerprint.
        confirm_requests: that the confirm phase sees of every finalist at its capacity, in all.
        extra_limits_ms: latency limits beside the workload's own, each an objective of its own.
    """

    price: Price
    demand: Demand
    limit_names: tuple[str, ...]
    slot: Slot
    machine: str
    confirm_requests: int
    extra_limits_ms: tuple[float, ...] = ()


def limit_names(workload: Workload) -> tuple[str, ...]:
    """Names of the constraints that a workload's limits are told under, see `StudyContext`."""
    return tuple(f"latency.{stream.name}" for stream in workload.streams)

"""Whether a configuration still holds the load that it was measured to hold. Pure control."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.load.verdicts import what_was_void, why_void
from optimizer.measurement.evaluation import Evaluation
from optimizer.workload.streams import Workload

_SHARES = (1.0, 0.97, 0.93, 0.87, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Shares of the capacity that are tried from the top until one meets the limits."""

_AT_DEMAND_REQUESTS = 200
"""Where replicas have room, latency is known from fewer requests than at the capacity."""


@dataclass(frozen=True)
class CertificationTask:
    """What is to be held.

    Attributes:
        load_factor: the capacity to begin with.
        requests: seen at the capacity, at least.
        at_demand: load factor of one replica when every replica has the given capacity; at most
            that.
    """

    load_factor: float
    requests: int
    at_demand: Callable[[float], float]


def certify_load(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    task: CertificationTask,
) -> Evaluation:
    """Saturate, then measure at the capacity that was found, stepping down while it is too much.

    A load is held when what one replica then has to serve of the demand is held too: both are
    measured, the capacity first. Saturation shows how fast the machine was during the round.

    Args:
        concurrency: requests kept outstanding to saturate the server.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the last load.
        VoidLevelFailure: when the load generator fell behind at the last load.
    """
    levels = CapacitySearch(run, workload, protocol)
    levels.saturate(concurrency)
    missed: float | None = None
    for load in (share * task.load_factor for share in _SHARES):
        if levels.holds(load, task.requests) and levels.holds(
            task.at_demand(load), _AT_DEMAND_REQUESTS
        ):
            share = load / task.load_factor
            ended = f"held {share:.0%} of its capacity"
            if (void := what_was_void(levels.levels)) is not None:
                ended += f"; {void}"
            return levels.ok(load, load, missed, ended)
        if why_void(levels.levels[-1]) is None:
            missed = load
    return levels.infeasible(levels.levels[-1])

"""Whether a configuration still holds the load that it was measured to hold. Pure control."""

from __future__ import annotations

from collections.abc import Callable

from optimizer.load.capacity import CapacityProtocol, CapacityResult, CapacitySearch, RunLevel
from optimizer.workload import Workload

_SHARES = (1.0, 0.97, 0.93, 0.87, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Shares of the capacity that are tried from the top until one meets the limits."""

_AT_DEMAND_REQUESTS = 200
"""Where replicas have room, latency is known from fewer requests than at the capacity."""


def hold_load(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    capacity: float,
    at_demand: Callable[[float], float],
) -> CapacityResult:
    """Measure at the capacity that was found, stepping down from a load that misses the limits.

    A load is held when what one replica then has to serve of the demand is held too: both are
    measured, the capacity first.

    Args:
        capacity: load factor to begin with.
        at_demand: load factor of one replica when every replica has the given capacity; at most
            that.

    Raises:
        LoadTestFailure: when every request failed at the last load.
    """
    levels = CapacitySearch(run, workload, protocol)
    requests = protocol.check_requests
    missed: float | None = None
    for load in (share * capacity for share in _SHARES):
        if levels.holds(load, requests) and levels.holds(at_demand(load), _AT_DEMAND_REQUESTS):
            return levels.ok(load, load, missed, f"held {load / capacity:.0%} of its capacity")
        missed = load
    return levels.infeasible(_SHARES[-1] * capacity)

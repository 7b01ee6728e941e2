"""The load-latency curve: whole levels from light load to saturation. Pure control."""

from __future__ import annotations

from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacityResult, CapacitySearch, RunLevel
from optimizer.workload import Workload

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of the saturation rate; waiting times bend upwards close to 1."""


def find_curve(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> CapacityResult:
    """Find the capacity, then measure levels from a tenth of saturation to all of it.

    Returns:
        What `find_capacity` does, with the levels of the curve after those of the search.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency)
    levels = result.measurement.levels
    curve = [search.whole_level(share * result.saturation.load_factor) for share in _SHARES]
    return replace(result, measurement=replace(result.measurement, levels=(*levels, *curve)))

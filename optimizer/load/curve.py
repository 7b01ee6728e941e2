"""How latency depends on the load: whole levels after the search for the capacity. Pure control."""

from __future__ import annotations

from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacityResult, CapacitySearch, RunLevel
from optimizer.workload import Workload

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of the saturation rate; waiting times bend upwards close to 1."""

SHARES_OF_CAPACITY = (0.5, 0.8)
"""Loads at which replicas are run that keep something free."""


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


def find_latencies(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    expected_share: float | None = None,
) -> CapacityResult:
    """Find the capacity, then measure levels at `SHARES_OF_CAPACITY`.

    Returns:
        What `find_capacity` does; where it found one, with these levels after those of the search.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    measurement = result.measurement
    shares = SHARES_OF_CAPACITY if result.verdict == "ok" else ()
    levels = [search.whole_level(share * measurement.load_factor) for share in shares]
    return replace(result, measurement=replace(measurement, levels=(*measurement.levels, *levels)))

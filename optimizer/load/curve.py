"""How latency depends on the load: whole levels after the search for the capacity. Pure control."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.load.level_checks import refuse_void, why_void
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel
from optimizer.workload.streams import Workload

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Of the saturation rate; waiting times bend upwards close to 1."""

SHARES_OF_CAPACITY = (0.5, 0.8)
"""Loads at which replicas are run that keep something free."""

LIGHT_SHARE = 0.5
"""Of the saturation rate: instances are often idle, and batches are small."""

_LIGHT = 0.5
"""Length of a light level, in those of a check."""

_LATENCIES = 4
"""Length of a level that is to tell percentiles closely, in those of a check."""


def find_curve(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> Evaluation:
    """Find the capacity, then measure levels from a tenth of saturation to all of it.

    Returns:
        What `find_capacity` does, with the levels of the curve after those of the search.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency)
    loads = [share * search.levels[0].load_factor for share in _SHARES]
    return _with(result, [search.whole_level(load) for load in loads])


def find_service(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> Evaluation:
    """Saturate, then offer `LIGHT_SHARE` of that: what service times are learnt from.

    Returns:
        An outcome of "bounded", with these two levels; without the second where it is void.

    Raises:
        LoadTestFailure: when every request failed under saturation.
    """
    search = CapacitySearch(run, workload, protocol)
    saturated, light = search.find_saturation(concurrency), _light(search, protocol)
    return _with(saturated, [light] if why_void(light) is None else [])


def find_capacity_and_service(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity, then measure the light level of `find_service`.

    Returns:
        What `find_capacity` does, with this level after those of the search.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    light = _light(search, protocol)
    refuse_void(light)
    return _with(result, [light])


def find_latencies(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity, then measure levels at `SHARES_OF_CAPACITY`.

    Returns:
        What `find_capacity` does; where it found one, with these levels after those of the search.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    shares = SHARES_OF_CAPACITY if result.outcome == "ok" else ()
    loads = [share * result.valid_measurement.load_factor for share in shares]
    seconds = _LATENCIES * protocol.check_seconds
    levels = [search.whole_level(load, seconds) for load in loads]
    for level in levels:
        refuse_void(level)
    return _with(result, levels)


def _light(search: CapacitySearch, protocol: CapacityProtocol) -> LoadLevel:
    load = LIGHT_SHARE * search.levels[0].load_factor
    return search.whole_level(load, _LIGHT * protocol.check_seconds)


def _with(result: Evaluation, levels: Sequence[LoadLevel]) -> Evaluation:
    """With further levels after those of the search."""
    measurement = result.valid_measurement
    return replace(result, measurement=replace(measurement, levels=(*measurement.levels, *levels)))

"""Levels beyond the capacity search: latency curve, light load, latencies below the capacity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.load.levels import refuse_void
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import LoadLevel
from optimizer.measurement.level_checks import why_void
from optimizer.workload.streams import Workload

_SHARES = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
"""Loads of the curve, relative to saturation; waiting times bend upwards close to 1."""

SHARES_OF_CAPACITY = (0.5, 0.8)
"""Loads of replicas that keep spare capacity, relative to the capacity."""

LIGHT_SHARE = 0.5
"""Light load, relative to saturation: instances are often idle, and batches are small."""

_LIGHT_LENGTH = 0.5
"""Length of a light level, relative to a check."""

_LATENCIES_LENGTH = 4
"""Length of a level with narrow intervals of its percentiles, relative to a check."""


def find_curve(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> Evaluation:
    """Find the capacity, then add levels from a tenth of saturation to all of it.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency)
    loads = [share * search.levels[0].load_factor for share in _SHARES]
    return _with_levels(result, [search.whole_level(load) for load in loads])


def find_service(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, concurrency: int
) -> Evaluation:
    """Saturate, then run a light load: the levels that service times are learnt from.

    The outcome is "bounded"; the light level is left out where it is void.

    Raises:
        LoadTestFailure: when every request failed under saturation.
    """
    search = CapacitySearch(run, workload, protocol)
    result, light = search.find_saturation(concurrency), _light(search, protocol)
    return _with_levels(result, [light] if why_void(light) is None else [])


def find_capacity_and_service(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity, then add the light level of `find_service`.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    light = _light(search, protocol)
    refuse_void(light)
    return _with_levels(result, [light])


def find_latencies(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity, then add levels at `SHARES_OF_CAPACITY` of it.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
        VoidLevelFailure: when the load generator fell behind.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    shares = SHARES_OF_CAPACITY if result.outcome == "ok" else ()
    loads = [share * result.valid_measurement.load_factor for share in shares]
    seconds = _LATENCIES_LENGTH * protocol.check_seconds
    levels = [search.whole_level(load, seconds) for load in loads]
    for level in levels:
        refuse_void(level)
    return _with_levels(result, levels)


def _light(search: CapacitySearch, protocol: CapacityProtocol) -> LoadLevel:
    load = LIGHT_SHARE * search.levels[0].load_factor
    return search.whole_level(load, _LIGHT_LENGTH * protocol.check_seconds)


def _with_levels(result: Evaluation, levels: Sequence[LoadLevel]) -> Evaluation:
    """Add levels after those of the search."""
    measurement = result.valid_measurement
    return replace(result, measurement=replace(measurement, levels=(*measurement.levels, *levels)))

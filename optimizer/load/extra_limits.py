"""Capacities within several latency limits, on one served configuration. Pure control.

The levels that were run for one limit say something of every other, see `other_limits`; so a
further limit takes but the levels that these leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.load.other_limits import judged, with_limit
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import ExtraLimit, LoadLevel
from optimizer.workload.streams import Workload


def find_capacities(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    limits_ms: Sequence[float],
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity within the workload's own limits, then within further ones.

    Args:
        limits_ms: of the stream whose own limit is the shortest; others keep their proportion.
        expected_share: see `find_capacity`.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    levels, further = list(search.levels), list[ExtraLimit]()
    for limit_ms in limits_ms:
        found, more = _go_on(run, workload.within(limit_ms), protocol, levels)
        assert found.limit_overshoot is not None
        measurement = replace(found.valid_measurement, levels=tuple(more))
        further.append(ExtraLimit(limit_ms, measurement, found.limit_overshoot))
        levels += more
    return replace(result, extra_limits=tuple(further))


def _go_on(
    run: RunLevel, workload: Workload, protocol: CapacityProtocol, levels: Sequence[LoadLevel]
) -> tuple[Evaluation, Sequence[LoadLevel]]:
    """Within the limits of `workload`; returns the levels that were run for them, too."""
    limit_ms = workload.shortest_limit_ms
    search = CapacitySearch(
        # Whoever runs levels knows the first limits alone.
        lambda plan: with_limit(run(plan), limit_ms),
        workload,
        protocol,
        [judged(level, limit_ms) for level in levels],
    )
    return search.go_on(), search.levels[len(levels) :]

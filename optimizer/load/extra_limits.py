"""Capacities within several latency limits, on one served configuration.

The levels that were run for one limit also tell where another one is reached: closely where it lies
among their latencies, with a wide interval elsewhere. An extra limit needs only the levels that
these leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import ExtraLimit
from optimizer.measurement.other_limits import at_other_limit, with_limit
from optimizer.workload.streams import Workload


def find_capacities(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    limits_ms: Sequence[float],
    expected_share: float | None = None,
) -> Evaluation:
    """Find the capacity within the workload's own limits, then within extra ones.

    Args:
        limits_ms: of the stream whose own limit is the shortest; others keep their proportion.
        expected_share: as in `find_capacity`.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the floor load.
    """
    search = CapacitySearch(run, workload, protocol)
    result = search.find(concurrency, expected_share=expected_share)
    levels, extra_limits = list(search.levels), list[ExtraLimit]()
    for limit_ms in limits_ms:
        search = CapacitySearch(
            _run_within(run, limit_ms),
            workload.within(limit_ms),
            protocol,
            [at_other_limit(level, limit_ms) for level in levels],
        )
        within = search.resume()
        new_levels = search.levels[len(levels) :]
        assert within.limit_overshoot is not None
        measurement = replace(within.valid_measurement, levels=tuple(new_levels))
        extra_limits.append(ExtraLimit(limit_ms, measurement, within.limit_overshoot))
        levels += new_levels
    return replace(result, extra_limits=tuple(extra_limits))


def _run_within(run: RunLevel, limit_ms: float) -> RunLevel:
    # The level runner knows only the workload's own limits.
    return lambda plan: with_limit(run(plan), limit_ms)

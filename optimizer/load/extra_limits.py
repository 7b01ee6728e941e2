"""Capacities within several latency limits, on one served configuration.

A level's latencies do not depend on the limit; the limit only says how far they are from it. So the
levels that were run for one limit also tell where another one is reached: closely where it lies
among their latencies, with a wide interval elsewhere. An extra limit needs only the levels that
these leave open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.load.knee import find_knee, knee_point
from optimizer.load.level_checks import (
    longest_lag_ms,
    met_with_ease,
    valid_open_loop,
    why_missed,
)
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level import HIGHEST_SHARE, ExtraLimit, LoadLevel
from optimizer.workload.streams import Workload

_ROUNDING = 1e-6


@dataclass(frozen=True)
class ShareWithin:
    """Share of saturation that is served within a limit, with its interval at `CONFIDENCE`.

    Attributes:
        shown: whether the levels show latencies on both sides of the limit, or the limit was met
            next to saturation.
        met: whether any level met the limit.
    """

    share: float
    low: float
    high: float
    shown: bool
    met: bool


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
    return lambda plan: _with_limit(run(plan), limit_ms)


def at_other_limit(level: LoadLevel, limit_ms: float) -> LoadLevel:
    """Return a level as if another limit had applied.

    Its verdict stays where it follows: a level that meets a limit meets a longer one.

    Args:
        limit_ms: of the stream whose limit is the shortest; others keep their proportion to it.
    """
    scale = limit_ms / level.shortest_limit_ms
    implied = {"feasible": scale >= 1, "infeasible": scale <= 1}
    return replace(
        _with_limit(level, limit_ms),
        verdict=level.verdict if level.verdict and implied[level.verdict] else None,
    )


def _with_limit(level: LoadLevel, limit_ms: float) -> LoadLevel:
    """Replace the limit of a level whose verdict already holds for it."""
    scale, client = limit_ms / level.shortest_limit_ms, level.client
    if client.longest_lag_ms is not None:
        client = replace(client, longest_lag_ms=longest_lag_ms(limit_ms))
    streams = tuple(replace(s, limit_ms=scale * s.limit_ms) for s in level.streams)
    return replace(level, streams=streams, client=client)


def share_within(
    levels: Sequence[LoadLevel], saturation: float, limit_ms: float
) -> ShareWithin | None:
    """Return the share of saturation at which a limit is reached; None without an open-loop level.

    Args:
        saturation: load factor under saturation.
        limit_ms: as in `at_other_limit`.
    """
    open_loop = valid_open_loop([at_other_limit(level, limit_ms) for level in levels])
    if not open_loop:
        return None
    points = [knee_point(level, saturation) for level in open_loop]
    met = [x.load_factor / saturation for x in open_loop if why_missed(x) is None]
    at_top = [x for x in open_loop if x.load_factor / saturation >= HIGHEST_SHARE - _ROUNDING]
    if len(met) == len(open_loop) and any(met_with_ease(level) for level in at_top):
        return ShareWithin(HIGHEST_SHARE, HIGHEST_SHARE, 1.0, shown=True, met=True)
    knee = find_knee(points)
    share = min(max(knee.share, min(met, default=0.0)), HIGHEST_SHARE)
    around = min(p.log_excess for p in points) <= 0 <= max(p.log_excess for p in points)
    met_at_top = any(why_missed(level) is None for level in at_top)
    return ShareWithin(
        share,
        min(knee.low, share),
        min(1.0, max(knee.high, share)),
        shown=around or met_at_top,
        met=bool(met),
    )

"""Measured levels, judged by another latency limit than the one that they were run for.

A level's latencies do not depend on the limit; the limit only says how far they are from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.measurement.knee import find_knee, knee_point
from optimizer.measurement.level import HIGHEST_SHARE, LoadLevel
from optimizer.measurement.level_checks import (
    longest_lag_ms,
    met_with_ease,
    valid_open_loop,
    why_missed,
)

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


def at_other_limit(level: LoadLevel, limit_ms: float) -> LoadLevel:
    """Return a level as if another limit had applied.

    Its verdict stays where it follows: a level that meets a limit meets a longer one.

    Args:
        limit_ms: of the stream whose limit is the shortest; others keep their proportion to it.
    """
    scale, other = limit_ms / level.shortest_limit_ms, with_limit(level, limit_ms)
    implied = {None: True, "feasible": scale >= 1, "infeasible": scale <= 1}
    return other if implied[level.verdict] else replace(other, verdict=None)


def with_limit(level: LoadLevel, limit_ms: float) -> LoadLevel:
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
    # Of thousands of configurations, levels that tell nothing are not copied.
    loaded = (level for level in levels if level.kind == "open_loop")
    open_loop = valid_open_loop(at_other_limit(level, limit_ms) for level in loaded)
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

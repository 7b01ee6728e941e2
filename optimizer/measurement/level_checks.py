"""Whether a measured level meets its limits or is void, and why not."""

from __future__ import annotations

import math
from collections.abc import Iterable

from optimizer.measurement.level import LoadLevel, Measurement

LEAST_OVERSHOOT = 0.01
"""Limit overshoot of a level that is proven to miss the limit, whatever its percentile shows."""

_AT_CAPACITY = 0.98
"""Share of a capacity from which a level counts as one at the capacity."""

_LONGEST_LAG = 0.05
_LAG_FLOOR_MS = 2.0
"""A level is void where the client's p99 lag is above 5 % of the shortest limit, and above this."""


def longest_lag_ms(shortest_limit_ms: float) -> float:
    """Return the client's lag above which a level tells more of the client than of the server."""
    return max(_LAG_FLOOR_MS, _LONGEST_LAG * shortest_limit_ms)


def valid_open_loop(levels: Iterable[LoadLevel]) -> tuple[LoadLevel, ...]:
    """Return the levels under independent arrivals in which the load generator kept up."""
    return tuple(x for x in levels if x.kind == "open_loop" and x.client.kept_up)


def failed_requests(level: LoadLevel) -> str | None:
    """Return how many requests of a level failed, and how; None where none did."""
    if not level.errors:
        return None
    return f"{level.errors} of {sent_requests(level)} requests failed: {first_error(level)}"


def rejected_requests(level: LoadLevel) -> str | None:
    """Return how many requests of a level the queue policy rejected; None where it did none."""
    if not level.rejected:
        return None
    return f"{level.rejected} of {sent_requests(level)} requests rejected by the queue policy"


def why_missed(level: LoadLevel) -> str | None:
    """Return why an open-loop level misses the limits, None where it meets them.

    A void level does neither; check `why_void` first.
    """
    if (failed := failed_requests(level)) is not None:
        return failed
    if level.limit_overshoot > 0:
        worst = level.worst
        latency = worst.latency_ms(worst.limit_percentile)
        limit = f"p{worst.limit_percentile:g} of {worst.name} {latency:.1f} ms"
        return f"{limit}, over the limit of {worst.limit_ms:g} ms"
    if backlog_grew(level):
        growth = f"{_backlog_growth(level):.0f} more requests were waiting"
        return f"{growth} after {level.seconds:g} s than at the start"
    if level.verdict == "infeasible":
        return level.ended
    return None


def why_void(level: LoadLevel) -> str | None:
    """Return why a level tells nothing of the server, None where it is valid."""
    client = level.client
    if client.kept_up:
        return None
    processes = f"{client.processes} process{'es' if client.processes != 1 else ''}"
    remedy = "give it free cores"
    if not client.realtime:
        remedy += ", or permit real-time priority (ulimit -r 1)"
    return (
        f"the load generator fell {client.lag_ms:.1f} ms behind (p99; "
        f"{client.longest_lag_ms:.1f} ms are allowed) with {processes}: {remedy}"
    )


def describe_void(levels: Iterable[LoadLevel]) -> str | None:
    """Return the least load of all void levels and its reason; None where none is void."""
    void = [level for level in levels if not level.client.kept_up]
    if not void:
        return None
    least = min(void, key=lambda level: level.load_factor)
    return f"at {least.offered_per_second:.1f}/s, {why_void(least)}"


def capacity_basis(measurement: Measurement) -> str | None:
    """Return the level that a capacity was estimated from; None where it was measured itself.

    Example:
        "extrapolated from 87/s, p95 77.0 ms"
    """
    level, load = measurement.level_at_capacity, measurement.load_factor
    if level is None or level.load_factor >= _AT_CAPACITY * load:
        return None
    above = any(each.load_factor > load for each in measurement.open_loop)
    how = "interpolated" if above else "extrapolated"
    return f"{how} from {level.offered_per_second:.0f}/s, p95 {level.latency_ms(95):.1f} ms"


def level_verdict(level: LoadLevel) -> str | None:
    """Return the result of a level as text, with the reason; None where it showed nothing yet."""
    texts = (_verdict(level), rejected_requests(level))
    return "; ".join(text for text in texts if text is not None) or None


def _verdict(level: LoadLevel) -> str | None:
    if level.kind != "open_loop":
        return failed_requests(level)
    if (reason := why_void(level)) is not None:
        return f"discarded: {reason}"
    if (reason := why_missed(level)) is not None:
        return f"{'infeasible' if level.verdict == 'infeasible' else 'limit missed'}: {reason}"
    return level.verdict


def met_with_ease(level: LoadLevel) -> bool:
    """Return whether the limits are proven to be met, or p99 is below half of each limit.

    Near saturation waiting times have an exponential tail: one so far from its limit almost never
    passes it, long before a few seconds of correlated waits can prove it.
    """
    if why_void(level) is not None or why_missed(level) is not None:
        return False
    far = all(
        2 * max(s.latency_ms(99), s.latency_ms(s.limit_percentile)) <= s.limit_ms
        for s in level.streams
    )
    return far or level.verdict == "feasible"


def limit_overshoot(level: LoadLevel) -> float:
    """Return by how much a level missed the limits: above 0 exactly where `why_missed` says why."""
    failed = level.errors / sent_requests(level)
    waiting = _backlog_growth(level) / sent_requests(level) if backlog_grew(level) else 0.0
    proven = LEAST_OVERSHOOT if level.verdict == "infeasible" else 0.0
    return max(level.limit_overshoot, failed or -1.0, waiting or -1.0, proven or -1.0)


def backlog_grew(level: LoadLevel) -> bool:
    """Return whether the backlog grew more than the randomness of arrivals explains (two sigma).

    An overloaded server meets a lax latency limit until its queue has grown long enough.
    """
    return _backlog_growth(level) > 2 * math.sqrt(sent_requests(level))


def _backlog_growth(level: LoadLevel) -> float:
    """Return the requests that were due in the window less the replies in it, of rejections too."""
    return (level.offered_per_second - level.achieved_per_second) * level.seconds - level.rejected


def sent_requests(level: LoadLevel) -> int:
    """Return the requests of all streams that were sent."""
    return sum(stream.sent for stream in level.streams)


def first_error(level: LoadLevel) -> str | None:
    """Return the message of the first failed request; None where none failed."""
    return next((s.first_error for s in level.streams if s.first_error is not None), None)

"""What one measured level says of the limits. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from optimizer.errors import LoadTestFailure, VoidLevelFailure
from optimizer.load.knee import NORMAL_QUANTILE, Point
from optimizer.measurement.level import HIGHEST_SHARE, LoadLevel, Measurement, StreamLevel
from optimizer.workload.streams import Workload

_LEAST_SD = 0.01
_FAILING = math.log(1.5)
"""Log latency over the limit that stands for a level that fails by errors or backlog."""

_LEAST_EXCESS = 0.01
"""Of a level that is proven to miss the limit, whatever its percentile shows."""

_AT_CAPACITY = 0.98
"""Share of a capacity from which a level counts as one at the capacity."""

_LONGEST_LAG = 0.05
_LAG_FLOOR_MS = 2.0
"""A level is void where the client's p99 lag is above 5 % of the shortest limit, and above this."""


def longest_lag_ms(shortest_limit_ms: float) -> float:
    """The client's lag above which a level says more of the client than of the server."""
    return max(_LAG_FLOOR_MS, _LONGEST_LAG * shortest_limit_ms)


def valid_open_loop(levels: Iterable[LoadLevel]) -> tuple[LoadLevel, ...]:
    """Return the levels under independent arrivals in which the load generator kept up."""
    return tuple(x for x in levels if x.kind == "open_loop" and x.client.kept_up)


def point(level: LoadLevel, saturation: float) -> Point:
    """A level as the knee sees it."""
    worst = level.worst
    log_excess = math.log1p(worst.limit_overshoot)
    if level.errors or _backlog_grew(level):
        log_excess = max(log_excess, _FAILING)
    if level.verdict == "infeasible":
        log_excess = max(log_excess, math.log1p(_LEAST_EXCESS))
    return Point(level.load_factor / saturation, log_excess, _sd(worst), worst.sent)


def _sd(stream: StreamLevel) -> float:
    """Standard error of the log of the latency at the limit's percentile, from its interval."""
    found = stream.latency(stream.limit_percentile)
    below = math.log(found.value_ms / found.low_ms) if found.low_ms > 0 else 1.0
    above = math.log(found.high_ms / found.value_ms) if found.high_ms is not None else 1.0
    return max(_LEAST_SD, (below + above) / 2 / NORMAL_QUANTILE)


def share_by_service_time(saturated: LoadLevel, workload: Workload) -> float:
    """Share of saturation at which waiting is thought to reach the limit of the tightest stream.

    In heavy traffic the wait for servers of constant service time, `rate` a second together, is
    above w with probability exp(-2 w rate (1 - share) / share) (Kingman 1962). Where requests were
    merged their service time depends on the load, and nothing below `HIGHEST_SHARE` is expected.
    """
    shares = [HIGHEST_SHARE]
    for stream in workload.streams:
        served = [split.batches for split in saturated.server if split.model == stream.target]
        if [[each.batch_size for each in batches] for batches in served] != [[stream.batch_size]]:
            continue
        [[executed]] = served
        room = (stream.limit.latency_ms - executed.compute_ms) / 1e3 * saturated.achieved_per_second
        late = -math.log1p(-stream.limit.percentile / 100)
        shares.append(room / (room + late / 2) if room > 0 else 0.0)
    return min(shares)


def refuse_if_all_failed(level: LoadLevel) -> None:
    """Raises LoadTestFailure when nothing at all was answered."""
    if level.errors == _sent(level):
        raise LoadTestFailure(f"every request failed: {_first_error(level)}")


def failed_requests(level: LoadLevel) -> str | None:
    """Return how many requests of a level failed, and how; None where none did."""
    if not level.errors:
        return None
    return f"{level.errors} of {_sent(level)} requests failed: {_first_error(level)}"


def why_missed(level: LoadLevel) -> str | None:
    """Return why an open-loop level is more than the server can take, None where it is not.

    A void level shows neither, see `why_void`.
    """
    if (failed := failed_requests(level)) is not None:
        return failed
    if level.limit_overshoot > 0:
        worst = level.worst
        latency = worst.latency_ms(worst.limit_percentile)
        limit = f"p{worst.limit_percentile:g} of {worst.name} {latency:.1f} ms"
        return f"{limit}, over the limit of {worst.limit_ms:g} ms"
    if _backlog_grew(level):
        return f"{_backlog_growth(level):.0f} requests more were waiting after {level.seconds:g} s"
    if level.verdict == "infeasible":
        return level.ended
    return None


def why_void(level: LoadLevel) -> str | None:
    """Return why a level says nothing of the server, None where it does."""
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


def what_was_void(levels: Iterable[LoadLevel]) -> str | None:
    """Return the least load of all void levels and why it was; None where none was void."""
    void = [level for level in levels if not level.client.kept_up]
    if not void:
        return None
    least = min(void, key=lambda level: level.load_factor)
    return f"at {least.offered_per_second:.1f}/s, {why_void(least)}"


def refuse_void(level: LoadLevel) -> None:
    """Raise VoidLevelFailure where a level says nothing of the server."""
    if (reason := what_was_void([level])) is not None:
        raise VoidLevelFailure(f"could not be measured: {reason}")


def capacity_basis(measurement: Measurement) -> str | None:
    """Return which level a capacity follows from; None where it was measured itself.

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
    """Return what a level showed of the limits, and why; None where it showed nothing yet."""
    if level.kind != "open_loop":
        return failed_requests(level)
    if (reason := why_void(level)) is not None:
        return f"void: {reason}"
    if (reason := why_missed(level)) is not None:
        return f"{'infeasible' if level.verdict == 'infeasible' else 'limit missed'}: {reason}"
    return level.verdict


def met_with_ease(level: LoadLevel) -> bool:
    """Whether the limits are proven to be met, or the 99th percentiles are below half of them.

    So near saturation waiting times have an exponential tail: one so far from its limit passes it
    almost never, long before a few seconds of correlated waits can prove it.
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
    failed = level.errors / _sent(level)
    waiting = _backlog_growth(level) / _sent(level) if _backlog_grew(level) else 0.0
    proven = _LEAST_EXCESS if level.verdict == "infeasible" else 0.0
    return max(level.limit_overshoot, failed or -1.0, waiting or -1.0, proven or -1.0)


def _backlog_growth(level: LoadLevel) -> float:
    """Requests that came into the window less good replies that left it."""
    return (level.offered_per_second - level.achieved_per_second) * level.seconds


def _backlog_grew(level: LoadLevel) -> bool:
    """Whether the backlog grew by more than the randomness of arrivals explains (two sigma).

    A lax latency limit is met by an overloaded server until its queue has grown long enough.
    """
    return _backlog_growth(level) > 2 * math.sqrt(_sent(level))


def _sent(level: LoadLevel) -> int:
    return sum(stream.sent for stream in level.streams)


def _first_error(level: LoadLevel) -> str | None:
    return next((s.first_error for s in level.streams if s.first_error is not None), None)

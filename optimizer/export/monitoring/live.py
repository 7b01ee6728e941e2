"""States of a server in production, with which its alerts are tried. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from optimizer.export.deployment import MeasuredModel

NEAR_CAPACITY = 0.9
"""Share of the capacity up to which figures are held against those that were measured at it.

Nearer to it they say little: with the same server and 3 % more load a mean queue became 60 ms
instead of 19, and measured twice at the same load a mean batch was 20 and 9 inferences.
"""

_WITH_ROOM = 0.85
"""Of the capacity: below `NEAR_CAPACITY`, as a server with headroom is asked."""

_JUST_WITHIN = 0.99
"""Of the capacity: at the capacity itself rounding decides what is above it."""

_WAITING = 8


@dataclass(frozen=True)
class Live:
    """Figures of one server.

    Attributes:
        latency_ms: at the limit's percentile; NaN where nothing was answered, as Triton has it.
        failures: share of the requests.
        waiting: requests that no execution has begun with.
        gone_after_minutes: when it stops showing anything; None where it does not.
    """

    requests_per_second: float
    latency_ms: float
    queue_ms: float
    batch_size: float
    failures: float = 0.0
    waiting: int = 0
    gone_after_minutes: int | None = None


def at_capacity(model: MeasuredModel) -> Live:
    """As it was measured. A latency over the limit was measured beside the capacity, not at it."""
    return Live(
        requests_per_second=_JUST_WITHIN * model.requests_per_second,
        latency_ms=min(model.latency_ms, model.limit.latency_ms),
        queue_ms=model.queue_ms or 0.0,
        batch_size=model.batch_size or 1.0,
        waiting=_WAITING,
    )


def with_room(model: MeasuredModel) -> Live:
    """At the load of a server with headroom, no better than at the capacity."""
    return replace(at_capacity(model), requests_per_second=_WITH_ROOM * model.requests_per_second)


def calm(model: MeasuredModel) -> dict[str, Live]:
    """States in which no alert may be on, by name."""
    alone = Live(
        requests_per_second=0.05 * model.requests_per_second,
        latency_ms=min(longest_ms(model), model.limit.latency_ms),
        queue_ms=model.queue_delay_ms,
        batch_size=1.0,
    )
    return {
        "as it was measured": at_capacity(model),
        "asked for less": with_room(model),
        "asked for little": alone,
        "asked for nothing": replace(alone, requests_per_second=0.0, latency_ms=math.nan),
    }


def longest_ms(model: MeasuredModel) -> float:
    """Latency that is no change: as measured, or longer at little load.

    There a batch that does not fill waits for all of its delay, at the capacity for less of it.
    """
    return model.latency_ms + max(0.0, model.queue_delay_ms - (model.queue_ms or 0.0))

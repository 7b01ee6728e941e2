"""States of a server in production, in which its alerts are tested."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from optimizer.export.deployment import MeasuredModel

NEAR_CAPACITY = 0.9
"""Share of the capacity up to which live figures are compared with those measured at it.

Nearer to the capacity they vary too much: with the same server and 3 % more load a mean queue time
became 60 ms instead of 19, and two measurements at the same load had mean batches of 20 and 9.
"""

_BELOW_CAPACITY = 0.85
"""Load of a server with headroom, as a share of the capacity; below `NEAR_CAPACITY`."""

_AT_CAPACITY = 0.99
"""At exactly the capacity, rounding would decide whether the load is above it."""

_PENDING_REQUESTS = 8


@dataclass(frozen=True)
class ServerState:
    """Figures of one server.

    Attributes:
        latency_ms: at the limit's percentile; NaN without replies, as Triton reports it.
        failures: share of the requests.
        pending: requests that wait for an execution.
        gone_after_minutes: when it stops reporting metrics; None where it does not.
    """

    requests_per_second: float
    latency_ms: float
    queue_ms: float
    batch_size: float
    failures: float = 0.0
    pending: int = 0
    gone_after_minutes: int | None = None


def at_capacity(model: MeasuredModel) -> ServerState:
    """Return the measured state, with the latency cut to the limit.

    A latency above the limit belongs to a load above the capacity.
    """
    return ServerState(
        requests_per_second=_AT_CAPACITY * model.requests_per_second,
        latency_ms=min(model.latency_ms, model.limit.latency_ms),
        queue_ms=model.queue_ms or 0.0,
        batch_size=model.batch_size or 1.0,
        pending=_PENDING_REQUESTS,
    )


def below_capacity(model: MeasuredModel) -> ServerState:
    """Return the state at the load of a server with headroom, no better than at the capacity."""
    return replace(
        at_capacity(model), requests_per_second=_BELOW_CAPACITY * model.requests_per_second
    )


def states_without_alerts(model: MeasuredModel) -> dict[str, ServerState]:
    """Return the states, by name, in which no alert may fire."""
    low_load = ServerState(
        requests_per_second=0.05 * model.requests_per_second,
        latency_ms=min(expected_latency_ms(model), model.limit.latency_ms),
        queue_ms=model.queue_delay_ms,
        batch_size=1.0,
    )
    return {
        "at the capacity": at_capacity(model),
        "below the capacity": below_capacity(model),
        "low load": low_load,
        "no load": replace(low_load, requests_per_second=0.0, latency_ms=math.nan),
    }


def expected_latency_ms(model: MeasuredModel) -> float:
    """Return the longest latency that is no drift: as measured, or that of a low load.

    At a low load a batch that does not fill waits for the whole queue delay, at the capacity for
    less of it.
    """
    return model.latency_ms + max(0.0, model.queue_delay_ms - (model.queue_ms or 0.0))

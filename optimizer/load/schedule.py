"""From a level's plan to the client's order: which request of which stream is due when. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from optimizer.load.arrivals import ARRIVALS
from optimizer.load.exchange import Order, Outstanding, Schedule
from optimizer.load.plan import ClosedLoop, LevelPlan, PreparedStream
from optimizer.workload import Stream

_MIX_LENGTH = 10_000
"""Requests after which a closed loop repeats its mix of streams."""


def order_for(
    plan: LevelPlan, streams: Sequence[PreparedStream], endpoint: str, rng: np.random.Generator
) -> Order:
    """Lay out every request of the level."""
    plain = [item.stream for item in streams]
    pace: Schedule | Outstanding
    if isinstance(plan.load, ClosedLoop):
        pace = Outstanding(plan.load.concurrency, plan.sending_seconds)
        stream_of = demand_mix(plain, rng)
    else:
        due, stream_of = due_requests(plain, plan.load.load_factor, plan.sending_seconds, rng)
        pace = Schedule(due)
    prepared = tuple(item.prepared for item in streams)
    return Order(endpoint, prepared, stream_of, pace, plan.timeout_seconds)


def demand_mix(streams: Sequence[Stream], rng: np.random.Generator) -> NDArray[np.int64]:
    """Stream indices drawn in proportion to demand, shape [`_MIX_LENGTH`]."""
    demand = np.array([stream.demand_per_second for stream in streams])
    return rng.choice(len(streams), size=_MIX_LENGTH, p=demand / demand.sum())


def due_requests(
    streams: Sequence[Stream], load_factor: float, duration_seconds: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Arrivals of all streams, merged: due times ascending, and whose they are; both shape [n]."""
    due = [
        ARRIVALS[stream.arrivals].due_seconds(
            load_factor * stream.demand_per_second, duration_seconds, rng
        )
        for stream in streams
    ]
    stream_of = np.repeat(np.arange(len(streams)), [len(times) for times in due])
    merged = np.concatenate(due)
    order = np.argsort(merged, kind="stable")
    return merged[order], stream_of[order]

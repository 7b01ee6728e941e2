"""The orders of client processes for a level: which request is due when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from optimizer.load.exchange import Order, Schedule, Users
from optimizer.load.level_plan import ClosedLoop, LevelPlan, OpenLoop, Target
from optimizer.workload.arrivals import arrivals_of
from optimizer.workload.streams import Stream, Workload

REPORT_SECONDS = 0.25
"""Reporting period of client processes, and so how soon a stopping rule can end a level."""

_MIX_LENGTH = 10_000
"""Requests after which a closed loop repeats its mix of streams."""


def order_for(
    plan: LevelPlan,
    target: Target,
    rng: np.random.Generator,
    sent: Mapping[str, int] = MappingProxyType({}),
) -> Order:
    """Return the order for one client process that sends the whole level.

    Args:
        sent: requests that earlier levels sent, by stream.
    """
    streams = target.plain_streams
    sending: Schedule | Users
    if isinstance(plan.load, OpenLoop):
        due, stream_of = due_requests(streams, plan.load.load_factor, plan.sending_seconds, rng)
        sending = Schedule(due)
    else:
        stream_of = demand_mix(streams, rng)
        sending = _users(plan)
    return Order(
        protocol=target.protocol,
        endpoint=target.address,
        prepared=tuple(item.prepared for item in target.streams),
        sequences=tuple(
            item.sequence.after(sent.get(item.stream.name, 0), rng) for item in target.streams
        ),
        streams=stream_of,
        sending=sending,
        timeout_seconds=plan.timeout_seconds,
        report_seconds=REPORT_SECONDS,
    )


def _users(plan: LevelPlan) -> Users:
    if isinstance(plan.load, ClosedLoop):
        always, count = np.zeros(1), np.array([plan.load.concurrency])
        return Users(always, count, think_seconds=0.0, seconds=plan.sending_seconds)
    assert not isinstance(plan.load, OpenLoop)
    return plan.load.users()


def shares(order: Order, processes: int) -> list[Order]:
    """Divide an order among client processes: requests, or users, in turn."""
    return [
        replace(
            order,
            streams=order.streams[n::processes] if len(order.streams) > n else order.streams,
            sequences=tuple(each.share(n, processes) for each in order.sequences),
            sending=_share(order.sending, n, processes),
        )
        for n in range(processes)
    ]


def _share(sending: Schedule | Users, n: int, processes: int) -> Schedule | Users:
    if isinstance(sending, Schedule):
        return Schedule(sending.due_seconds[n::processes])
    return replace(sending, counts=(sending.counts + processes - 1 - n) // processes)


def demand_mix(streams: Sequence[Stream], rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw stream indices in proportion to demand, shape [`_MIX_LENGTH`]."""
    demand = np.array([stream.demand_per_second for stream in streams])
    return rng.choice(len(streams), size=_MIX_LENGTH, p=demand / demand.sum())


def due_requests(
    streams: Sequence[Stream], load_factor: float, duration_seconds: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Merge the arrivals of all streams: ascending due times and stream indices, shape [n].

    Bursts of all streams come together.
    """
    bursts = Workload(tuple(streams)).bursts
    begun = replace(bursts, begin_seconds=bursts.begin(rng)) if bursts is not None else None
    due = [
        arrivals_of(begun if begun and stream.bursts else stream.arrivals).due_seconds(
            load_factor * stream.demand_per_second, duration_seconds, rng
        )
        for stream in streams
    ]
    stream_of = np.repeat(np.arange(len(streams)), [len(times) for times in due])
    merged = np.concatenate(due)
    order = np.argsort(merged, kind="stable")
    return merged[order], stream_of[order]

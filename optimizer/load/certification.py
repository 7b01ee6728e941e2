"""Certification of a capacity by whole levels, at it and at the demand of one replica."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from optimizer.load.capacity import CapacityProtocol, CapacitySearch, RunLevel
from optimizer.measurement.evaluation import Evaluation
from optimizer.measurement.level_checks import describe_void, why_void
from optimizer.workload.streams import Workload

_SHARES = (1.0, 0.97, 0.93, 0.87, 0.8, 0.65, 0.5, 0.35, 0.2)
"""Shares of the capacity that are tried from the top until one meets the limits."""

AT_DEMAND_REQUESTS = 200
"""The same at the demand: where replicas have spare capacity, fewer tell the latency."""


@dataclass(frozen=True)
class CertificationTask:
    """The load to certify.

    Attributes:
        load_factor: the capacity to begin with.
        requests: most requests at the capacity, where these take longer than a level of the
            protocol: fewer are sent once it is proven that they meet the limits.
        at_demand: returns the load factor of one replica when every replica has the given capacity;
            at most that.
        level_seconds: longest open-loop level.
        shortest_seconds: shortest one where the capacity is missed again and again.
        open_loop_seconds: time for all open-loop levels together; from the first step down, each
            takes at most a third of what the ones before it have left.
    """

    load_factor: float
    requests: int
    at_demand: Callable[[float], float]
    level_seconds: float = math.inf
    shortest_seconds: float = 0.0
    open_loop_seconds: float = math.inf

    def seconds(
        self, protocol: CapacityProtocol, requests: int, per_second: float, step: int, spent: float
    ) -> float:
        """Return the length of a level, which becomes shorter with the steps down.

        Args:
            step: number of loads that were missed.
            spent: seconds that the open-loop levels before it took.
        """
        whole = min(self.level_seconds, protocol.level_seconds(requests, per_second))
        if step == 0:
            return whole
        halved = whole * 0.5 ** (step - 1)
        in_time = (self.open_loop_seconds - spent) / 3 - protocol.warmup_seconds
        return min(whole, max(self.shortest_seconds, min(halved, in_time)))


def certify_load(
    run: RunLevel,
    workload: Workload,
    protocol: CapacityProtocol,
    concurrency: int,
    task: CertificationTask,
) -> Evaluation:
    """Saturate, then measure at the capacity of the task, stepping down while it is too much.

    A load is certified when it meets the limits, and then the load of one replica at the demand
    does too. Saturation shows how fast the machine was during the round. Levels become shorter from
    the second step down: on a machine that falters, ten levels of one configuration are not worth
    ten times the time of one. They also become shorter as the time of the task ends: a round that
    is cut off confirms nothing.

    Args:
        concurrency: requests kept outstanding to saturate the server.

    Raises:
        LoadTestFailure: when every request failed, under saturation or at the last load.
        VoidLevelFailure: when the load generator fell behind at the last load.
    """
    search = CapacitySearch(run, workload, protocol)
    search.saturate(concurrency)
    missed: float | None = None
    for step, share in enumerate(_SHARES):
        load = share * task.load_factor
        at_demand = task.at_demand(load)
        if all(
            search.meets_limits(
                each,
                protocol.check_seconds,
                task.seconds(
                    protocol,
                    requests,
                    each * workload.demand_per_second,
                    step,
                    search.open_loop_seconds,
                ),
            )
            for each, requests in ((load, task.requests), (at_demand, AT_DEMAND_REQUESTS))
        ):
            ended = f"certified {share:.0%} of its capacity"
            if (void := describe_void(search.levels)) is not None:
                ended += f"; {void}"
            return search.certify(load, load, missed, ended)
        if why_void(search.levels[-1]) is None:
            missed = load
    return search.infeasible(search.levels[-1])

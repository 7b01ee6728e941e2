"""What autoscaling makes of a demand over time: target tracking, with what it takes to start. Pure.

Every tick the fleet's metric is read and so many instances are wanted as would bring it to its
target, as Kubernetes' HorizontalPodAutoscaler and AWS's target tracking do; more are ordered at
once and serve when they are ready, fewer are kept only when fewer were wanted for a while.

Within a tick an instance is steady: latencies are those that `Response` has for its rate. What
arrives above saturation queues up as a fluid does, and its wait comes on top.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.demand_curve import DemandCurve
from optimizer.fleet.planning.load_response import Response

TICK_SECONDS = 60.0

Metric = Literal["rate", "busy", "queue"]
"""Requests a second of an instance; share of its instances' time that is busy; mean time in the
queue, ms."""

METRICS: tuple[Metric, ...] = ("rate", "busy", "queue")


@dataclass(frozen=True)
class TargetTracking:
    """Target tracking of one metric.

    Attributes:
        target: that the metric is held at, in its own unit.
        delay_seconds: from ordering an instance until it serves.
        tolerance: relative departure from the target at which nothing is done.
        settling_seconds: fewer instances are kept when no more were wanted for so long.
        least, most: bounds of the instances.
    """

    metric: Metric
    target: float
    delay_seconds: float
    tolerance: float = 0.1
    settling_seconds: float = 300.0
    least: int = 1
    most: int = 1_000_000


@dataclass(frozen=True)
class AutoscaledFleet:
    """What became of one period of the demand, by ticks; arrays of shape [ticks].

    Attributes:
        charged: instances that cost: serving or on their way.
        serving: instances that serve.
        late_share: of the requests, over their limits.
    """

    policy: TargetTracking
    per_second: NDArray[np.float64]
    charged: NDArray[np.int64]
    serving: NDArray[np.int64]
    late_share: NDArray[np.float64]


def autoscale(
    curve: DemandCurve, response: Response, limit_ms: float, policy: TargetTracking, begin_with: int
) -> AutoscaledFleet:
    """Let a policy follow a demand for two of its periods; the second one is what counts.

    Args:
        limit_ms: above which a wait alone makes requests late.
        begin_with: instances.
    """
    ticks = max(1, round(curve.seconds / TICK_SECONDS))
    rates = curve.at((np.arange(ticks) + 0.5) * TICK_SECONDS)
    fleet = _Fleet(policy, max(begin_with, policy.least))
    queue = _Backlog(response, limit_ms)
    rows = []
    for tick in range(2 * ticks):
        rate = float(rates[tick % ticks])
        fleet.take_in(tick)
        each = rate / fleet.serving
        late = queue.late_share(each)
        rows.append((fleet.charged, fleet.serving, late))
        fleet.follow(tick, queue.metric(policy.metric, each))
    charged, serving, late_share = np.array(rows[ticks:]).T
    return AutoscaledFleet(
        policy, rates, charged.astype(np.int64), serving.astype(np.int64), late_share
    )


class _Fleet:
    """Instances that serve, those on their way, and what was wanted lately."""

    def __init__(self, policy: TargetTracking, serving: int) -> None:
        self._policy = policy
        self.serving = serving
        self._ordered: deque[tuple[int, int]] = deque()
        self._delay = math.ceil(policy.delay_seconds / TICK_SECONDS)
        self._wanted: deque[int] = deque(
            [serving], maxlen=max(1, math.ceil(policy.settling_seconds / TICK_SECONDS))
        )

    @property
    def charged(self) -> int:
        """Instances that cost."""
        return self.serving + sum(count for _, count in self._ordered)

    def take_in(self, tick: int) -> None:
        """Let those serve that are ready."""
        while self._ordered and self._ordered[0][0] <= tick:
            self.serving += self._ordered.popleft()[1]

    def follow(self, tick: int, metric: float) -> None:
        """Order what is missing, or let go what was not wanted for a while."""
        policy, share = self._policy, metric / self._policy.target
        kept = abs(share - 1) <= policy.tolerance
        # A share of a queue that has run away may be beyond any number.
        share = min(share, policy.most)
        wanted = self.serving if kept else math.ceil(self.serving * share - 1e-9)
        self._wanted.append(min(max(wanted, policy.least), policy.most))
        missing = self._wanted[-1] - self.charged
        if missing > 0:
            # What is ordered at the end of a tick serves from the start of a later one.
            self._ordered.append((tick + 1 + self._delay, missing))
        elif not self._ordered:
            self.serving = min(self.serving, max(self._wanted))


class _Backlog:
    """What waits at each instance beyond what a steady load explains, as the time it takes."""

    def __init__(self, response: Response, limit_ms: float) -> None:
        self._response = response
        self._limit_ms = limit_ms
        self._wait_ms = 0.0

    def late_share(self, per_second: float) -> float:
        """Share of a tick's requests that are late; the backlog is then that of its end."""
        response = self._response
        before = self._wait_ms
        slope = per_second / response.saturation_per_second - 1
        after = max(0.0, before + slope * TICK_SECONDS * 1e3)
        self._wait_ms = after
        low, high = sorted((before, after))
        over = high - max(low, self._limit_ms)
        overdue = over / (high - low) if high > low and over > 0 else float(over > 0)
        steady = float(np.interp(per_second, response.per_second, response.late_share))
        return overdue + (1 - overdue) * steady

    def metric(self, name: Metric, per_second: float) -> float:
        """What is read at the end of a tick."""
        response = self._response
        if name == "rate":
            return per_second
        if name == "busy":
            steady = float(np.interp(per_second, response.per_second, response.busy_share))
            return 1.0 if self._wait_ms > 0 else steady
        steady = float(np.interp(per_second, response.per_second, response.queue_ms))
        return steady + self._wait_ms


def target_at(response: Response, metric: Metric, per_second: float) -> float:
    """What a metric reads at a steady rate of one instance."""
    read = {
        "rate": response.per_second,
        "busy": response.busy_share,
        "queue": response.queue_ms,
    }[metric]
    return float(np.interp(per_second, response.per_second, read))

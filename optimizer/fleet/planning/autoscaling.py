"""Simulation of autoscaling under a demand over time: target tracking with start-up delays.

Every tick the controller reads the fleet's metric and computes the number of instances that would
bring it to its target, as Kubernetes' HorizontalPodAutoscaler and AWS's target tracking do. More
instances are started at once and serve when they are ready; instances are removed only if the
desired number was lower for a while.

Within a tick an instance is in steady state: its latencies are those of `Response` at its rate.
Requests above saturation queue up as a fluid does, which adds to the latency.
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
"""Per instance: requests/s; utilisation of its model instances; mean queue time in ms."""

METRICS: tuple[Metric, ...] = ("rate", "busy", "queue")


@dataclass(frozen=True)
class TargetTracking:
    """Target tracking of one metric.

    Attributes:
        target: of the metric, in its own unit.
        delay_seconds: from starting an instance until it serves.
        tolerance: relative difference from the target that is ignored.
        settling_seconds: how long fewer instances must be desired before any is removed.
        least, most: bounds of the number of instances.
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
    """A fleet over one period of the demand, by ticks; arrays of shape [ticks].

    Attributes:
        per_second: request rate of the demand.
        charged: instances that serve or start.
        serving: instances that serve.
        late_share: share of the requests over their limits.
    """

    per_second: NDArray[np.float64]
    charged: NDArray[np.int64]
    serving: NDArray[np.int64]
    late_share: NDArray[np.float64]


def autoscale(
    curve: DemandCurve, response: Response, limit_ms: float, policy: TargetTracking, begin_with: int
) -> AutoscaledFleet:
    """Simulate a policy over two periods of a demand, and return the second one.

    Args:
        limit_ms: requests that wait longer are late.
        begin_with: instances at the start.
    """
    ticks = max(1, round(curve.seconds / TICK_SECONDS))
    rates = curve.at((np.arange(ticks) + 0.5) * TICK_SECONDS)
    fleet = _Fleet(policy, max(begin_with, policy.least))
    backlog = _Backlog(response, limit_ms)
    rows = []
    for tick in range(2 * ticks):
        rate = float(rates[tick % ticks])
        fleet.admit_ready(tick)
        each = rate / fleet.serving
        late = backlog.late_share(each)
        rows.append((fleet.charged, fleet.serving, late))
        fleet.scale(tick, backlog.metric(policy.metric, each))
    charged, serving, late_share = np.array(rows[ticks:]).T
    return AutoscaledFleet(rates, charged.astype(int), serving.astype(int), late_share)


class _Fleet:
    """Instances that serve or start, and the numbers that were desired lately."""

    def __init__(self, policy: TargetTracking, serving: int) -> None:
        self._policy = policy
        self.serving = serving
        self._starting: deque[tuple[int, int]] = deque()
        self._delay = math.ceil(policy.delay_seconds / TICK_SECONDS)
        self._desired: deque[int] = deque(
            [serving], maxlen=max(1, math.ceil(policy.settling_seconds / TICK_SECONDS))
        )

    @property
    def charged(self) -> int:
        """Instances that are charged."""
        return self.serving + sum(count for _, count in self._starting)

    def admit_ready(self, tick: int) -> None:
        """Let started instances serve."""
        while self._starting and self._starting[0][0] <= tick:
            self.serving += self._starting.popleft()[1]

    def scale(self, tick: int, metric: float) -> None:
        """Start missing instances, or remove those that were not desired for a while."""
        policy, share = self._policy, metric / self._policy.target
        unchanged = abs(share - 1) <= policy.tolerance
        # The metric of a queue that grows without bound may be too large for an integer.
        share = min(share, policy.most)
        desired = self.serving if unchanged else math.ceil(self.serving * share - 1e-9)
        self._desired.append(min(max(desired, policy.least), policy.most))
        missing = self._desired[-1] - self.charged
        if missing > 0:
            # Instances that start at the end of a tick serve from the start of a later one.
            self._starting.append((tick + 1 + self._delay, missing))
        elif not self._starting:
            self.serving = min(self.serving, max(self._desired))


class _Backlog:
    """The queue of each instance beyond the steady state, as the time to work it off."""

    def __init__(self, response: Response, limit_ms: float) -> None:
        self._response = response
        self._limit_ms = limit_ms
        self._wait_ms = 0.0

    def late_share(self, per_second: float) -> float:
        """Return the share of late requests in a tick, and advance the backlog to its end."""
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
        """Return a metric at the end of a tick."""
        response = self._response
        if name == "rate":
            return per_second
        if name == "busy":
            steady = float(np.interp(per_second, response.per_second, response.busy_share))
            return 1.0 if self._wait_ms > 0 else steady
        steady = float(np.interp(per_second, response.per_second, response.queue_ms))
        return steady + self._wait_ms


def target_at(response: Response, metric: Metric, per_second: float) -> float:
    """Return the value of a metric at a steady rate of one instance."""
    values = {
        "rate": response.per_second,
        "busy": response.busy_share,
        "queue": response.queue_ms,
    }[metric]
    return float(np.interp(per_second, response.per_second, values))

"""A fleet planned for a demand: how it may be run, what a loss does to it, what it costs. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from optimizer.errors import UsageError
from optimizer.fleet.planning.autoscaling import (
    METRICS,
    TICK_SECONDS,
    AutoscaledFleet,
    Metric,
    TargetTracking,
    autoscale,
    target_at,
)
from optimizer.fleet.planning.demand_curve import DemandCurve
from optimizer.fleet.planning.fleet_simulation import SimulatedFleet
from optimizer.fleet.planning.instance import Instance
from optimizer.fleet.planning.load_response import simulate_response
from optimizer.fleet.planning.mix import FleetMember, FleetMix
from optimizer.fleet.planning.sizing import Survival, cheapest_fleet

HOURS_PER_MONTH = 8766 / 12

SURVIVALS: tuple[Survival, ...] = ("nothing", "instance", "zone")

_TARGETS = tuple(share / 100 for share in range(100, 25, -5))
"""Shares of the most within the limit, at which targets are tried from the top."""

MOST_AUTOSCALED = 2
"""Times the recommended fleet: a bound, as autoscalers have one."""

MAX_INSTANCES = 5_000
"""Of a plan: every one of them is simulated at the peak."""

_MOST_RATES = 2_016
"""Different rates of a demand, those of a week: of a longer one they are rounded up to so many."""

_CORRECTIONS = 3
_CORRECTED = 200
"""Instances by which the smallest fleet is looked for, and up to which: where there are more, one
makes less difference than the simulation can tell."""


@dataclass(frozen=True)
class PlanInputs:
    """What is planned for.

    Attributes:
        headroom: share kept free above the demand.
        survival: what the fleet must be able to lose.
        zones: over which instances are spread evenly.
        launch_seconds: until an instance's machine is there; its models' setup comes on top.
        most: instances that can be had, by instance type; any number of those that are not named.
    """

    curve: DemandCurve
    headroom: float = 0.0
    survival: Survival = "nothing"
    zones: int = 3
    launch_seconds: float = 240.0
    most: Mapping[str, int] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class ScalingPolicy:
    """One way of running a fleet over the demand's time.

    Attributes:
        charged: instances that cost, by moments in equal steps over the demand's period.
        usd_per_hour: mean.
        late_share: of the requests of each of the demand's steps, by the steady loads of its
            instances and what queues up.
        policy: of what is autoscaled.
    """

    name: str
    charged: NDArray[np.int64]
    usd_per_hour: float
    late_share: NDArray[np.float64]
    policy: TargetTracking | None = None

    @property
    def usd_per_month(self) -> float:
        """Of the 730.5 hours that a month has on average."""
        return self.usd_per_hour * HOURS_PER_MONTH

    def missed_steps(self, allowed: float) -> int:
        """Of the demand's steps, those in which more requests are late than the limits allow."""
        return int((self.late_share > allowed).sum())


@dataclass(frozen=True)
class CapacityLoss:
    """The peak, right after something is lost.

    Attributes:
        lost: "an instance" or "a zone".
        left: what still serves.
        found: simulated by type; empty where less is left than what comes saturates.
        waiting_seconds: what a request waits when what was lost serves again; infinity where
            nothing is left, 0 where what is left serves all that comes.
    """

    lost: str
    left: FleetMix
    found: tuple[SimulatedFleet, ...]
    waiting_seconds: float


@dataclass(frozen=True)
class SingleTypeFleet:
    """The cheapest fleet of a single type, and how near it is to the least that will do.

    Attributes:
        at_minimum, below_minimum: the peak on the smallest fleet that keeps the limits, every
            instance simulated, and on one instance less; None where there is no less.
        autoscaled: by each metric, at the highest target that keeps the limits all the time; at
            the lowest one where none does.
    """

    member: FleetMember
    at_minimum: SimulatedFleet
    below_minimum: SimulatedFleet | None
    autoscaled: tuple[ScalingPolicy, ...]


@dataclass(frozen=True)
class Plan:
    """What a demand needs.

    Attributes:
        fleet: the cheapest for the peak, with headroom and what it must survive.
        found: the peak on it, simulated by type.
        ways: that fleet all the time, and one that follows the demand as if it were known.
        one_type: None where there are too few of any type alone.
        surviving: the cheapest fleet that survives what is named; None where there is none.
        allowed: share of late requests that the limits allow.
    """

    question: PlanInputs
    fleet: FleetMix
    found: tuple[SimulatedFleet, ...]
    ways: tuple[ScalingPolicy, ...]
    one_type: SingleTypeFleet | None
    surviving: Mapping[Survival, FleetMix | None]
    losses: tuple[CapacityLoss, ...]
    allowed: float


def plan_fleet(instances: Sequence[Instance], question: PlanInputs) -> Plan | None:
    """Plan a fleet; None where what can be had does not suffice.

    Args:
        instances: whose simulation agrees with what was measured, see `Instance.agreed`; at least
            one, all asked for the same streams.
    """
    members = tuple(
        FleetMember(each, simulate_response(each.parts, question.seed).times(each.copies))
        for each in instances
    )
    usable = [member for member in members if member.capacity_per_second > 0]
    return _Planner(question, usable).plan() if usable else None


class _Planner:
    """Answers one question with the members at hand."""

    def __init__(self, question: PlanInputs, members: Sequence[FleetMember]) -> None:
        self._question = question
        self._members = members
        self._peak = question.curve.peak
        parts = members[0].instance.parts
        self._allowed = sum(part.share * (1 - part.limit.percentile / 100) for part in parts)
        self._limit_ms = min(part.limit.latency_ms for part in parts)

    def plan(self) -> Plan | None:
        """See `plan_fleet`."""
        question = self._question
        fleet = self._fleet(self._members, self._peak, question.survival)
        if fleet is None:
            return None
        _refuse_too_many(fleet)
        return Plan(
            question=question,
            fleet=fleet,
            found=fleet.simulated(self._peak, question.seed),
            ways=(self._constant(fleet), self._scheduled(fleet)),
            one_type=self._one_type(),
            surviving={each: self._fleet(self._members, self._peak, each) for each in SURVIVALS},
            losses=tuple(self._losses(fleet)),
            allowed=self._allowed,
        )

    def _fleet(
        self, members: Sequence[FleetMember], per_second: float, survival: Survival
    ) -> FleetMix | None:
        question = self._question
        needed = per_second * (1 + question.headroom)
        return cheapest_fleet(members, needed, survival, question.zones, question.most)

    def _constant(self, fleet: FleetMix) -> ScalingPolicy:
        rates = self._question.curve.rates
        charged = np.full(len(rates), fleet.instances)
        return ScalingPolicy("constant", charged, fleet.usd_per_hour, fleet.late_share(rates))

    def _scheduled(self, at_peak: FleetMix) -> ScalingPolicy:
        """Fleets that are ready before the demand is, by what it will be."""
        curve = self._question.curve
        setup = max(self._delay(member) for member in self._members)
        ahead = int(np.ceil(setup / curve.step_seconds))
        needed = np.max([np.roll(curve.rates, -step) for step in range(ahead + 1)], axis=0)
        if len(np.unique(needed)) > _MOST_RATES:
            unit = self._peak / _MOST_RATES
            needed = np.minimum(np.ceil(needed / unit) * unit, self._peak)
        fleets = {
            rate: self._fleet(self._members, rate, self._question.survival) or at_peak
            for rate in set(needed.tolist())
            if rate > 0
        }
        least = min(fleets.values(), key=lambda fleet: fleet.usd_per_hour)
        over_time = [fleets.get(rate, least) for rate in needed.tolist()]
        late = [
            fleet.late_share(np.array([rate]))[0]
            for fleet, rate in zip(over_time, curve.per_second, strict=True)
        ]
        cost = sum(fleet.usd_per_hour for fleet in over_time) / len(over_time)
        charged = np.array([fleet.instances for fleet in over_time])
        return ScalingPolicy("scheduled", charged, cost, np.array(late))

    def _one_type(self) -> SingleTypeFleet | None:
        question = self._question
        found = [
            (fleet, member)
            for member in self._members
            if (fleet := self._fleet([member], self._peak, question.survival)) is not None
        ]
        if not found:
            return None
        fleet, member = min(found, key=lambda each: each[0].usd_per_hour)
        _refuse_too_many(fleet)
        below, at_minimum = self._around_minimum(member)
        most = MOST_AUTOSCALED * fleet.instances
        return SingleTypeFleet(
            member=member,
            at_minimum=at_minimum,
            below_minimum=below,
            autoscaled=tuple(self._autoscaled(member, metric, most) for metric in METRICS),
        )

    def _around_minimum(self, member: FleetMember) -> tuple[SimulatedFleet | None, SimulatedFleet]:
        """The largest fleet that misses the limit at the peak, and the next larger one.

        Beginning with what the response of one instance says, which is known to about 1 %.
        """

        def simulated(instances: int) -> SimulatedFleet:
            return member.simulated(instances, self._peak, self._question.seed)

        guess = member.least(self._peak)
        corrections = _CORRECTIONS if guess <= _CORRECTED else 0
        at = simulated(guess)
        while not at.keeps_limits and at.instances < guess + corrections:
            at = simulated(at.instances + 1)
        below: SimulatedFleet | None = None
        while at.instances > 1:
            below = simulated(at.instances - 1)
            if not below.keeps_limits or at.instances <= guess - corrections:
                return below, at
            at = below
        return None, at

    def _autoscaled(self, member: FleetMember, metric: Metric, most: int) -> ScalingPolicy:
        way = self._followed(member, metric, _TARGETS[0], most)
        for share in _TARGETS[1:]:
            if way.missed_steps(self._allowed) == 0:
                return way
            way = self._followed(member, metric, share, most)
        return way

    def _followed(
        self, member: FleetMember, metric: Metric, share: float, most: int
    ) -> ScalingPolicy:
        """Autoscaled by a metric, its target read at a share of the most within the limit."""
        curve, response = self._question.curve, member.response
        aimed = share * response.most_within_per_second
        target = target_at(response, metric, aimed)
        policy = TargetTracking(metric, target, self._delay(member), most=most)
        begin_with = max(1, int(np.ceil(curve.per_second[0] / aimed)))
        ran = autoscale(curve, response, self._limit_ms, policy, begin_with)
        hourly = member.instance.price.usd_per_hour * float(ran.charged.mean())
        late = _by_step(ran, curve)
        return ScalingPolicy(f"scaled on {metric}", ran.charged, hourly, late, policy)

    def _delay(self, member: FleetMember) -> float:
        return self._question.launch_seconds + member.instance.setup_seconds

    def _losses(self, fleet: FleetMix) -> Iterator[CapacityLoss]:
        cases: Sequence[tuple[str, Callable[[], FleetMix]]] = (
            ("an instance", fleet.without_an_instance),
            ("a zone", lambda: fleet.without_a_zone(self._question.zones)),
        )
        for lost, take in cases:
            left = take()
            if left.instances == 0:
                yield CapacityLoss(lost, left, (), float("inf"))
                continue
            use = self._peak / left.saturation_per_second
            delay = max(self._delay(member) for member in self._members)
            found = left.simulated(self._peak, self._question.seed) if use < 1 else ()
            yield CapacityLoss(lost, left, found, max(0.0, (use - 1) * delay))


def _refuse_too_many(fleet: FleetMix) -> None:
    if fleet.instances > MAX_INSTANCES:
        raise UsageError(
            f"the demand's peak needs {fleet.instances:,} instances; a plan is of at most "
            f"{MAX_INSTANCES:,}, each of which is simulated: plan a part of the demand"
        )


def _by_step(ran: AutoscaledFleet, curve: DemandCurve) -> NDArray[np.float64]:
    """Late shares of the demand's steps, from those of the ticks; shape [steps]."""
    at = (np.arange(len(ran.late_share)) + 0.5) * TICK_SECONDS
    step = np.minimum(at // curve.step_seconds, len(curve.per_second) - 1).astype(int)
    steps = len(curve.per_second)
    late = np.bincount(step, ran.per_second * ran.late_share, steps)
    requests = np.bincount(step, ran.per_second, steps)
    shares: NDArray[np.float64] = np.divide(late, requests, out=np.zeros(steps), where=requests > 0)
    return shares

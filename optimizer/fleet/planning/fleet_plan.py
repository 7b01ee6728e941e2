"""Plan of a fleet for a demand: its size, scaling policies, cost, and the loss of instances."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

_TARGET_SHARES = tuple(share / 100 for share in range(100, 25, -5))
"""Shares of the capacity that are tried as autoscaling targets, highest first."""

MOST_AUTOSCALED = 2
"""Upper bound of autoscaling, relative to the recommended fleet."""

MAX_INSTANCES = 5_000
"""Largest plan: every instance is simulated at the peak."""

_MAX_RATES = 2_016
"""Steps of a week. The rates of a longer demand are rounded up to as many different ones."""

_CORRECTIONS = 3
_MAX_CORRECTED = 200
"""The smallest fleet is searched within `_CORRECTIONS` instances of the estimate, for up to this
size; beyond it, one instance makes less difference than the simulation resolves."""


@dataclass(frozen=True)
class PlanInputs:
    """The demand and the constraints of a plan.

    Attributes:
        headroom: spare capacity as a share of the demand.
        survival: what may fail.
        zones: over which instances are spread evenly.
        launch_seconds: until the machine of a started instance runs, before its models' setup.
        most: available instances, by instance type; unlimited for types that are not named.
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
    """The size of a fleet over time, with its cost.

    Attributes:
        charged: charged instances, in equal steps over the demand's period.
        usd_per_hour: mean.
        late_share: share of late requests in each step of the demand, from steady loads and
            backlogs.
        policy: of an autoscaled fleet.
    """

    name: str
    charged: NDArray[np.int64]
    usd_per_hour: float
    late_share: NDArray[np.float64]
    policy: TargetTracking | None = None

    @property
    def usd_per_month(self) -> float:
        """Price of a mean month of 730.5 hours."""
        return self.usd_per_hour * HOURS_PER_MONTH

    def missed_steps(self, allowed: float) -> int:
        """Return the number of steps with a higher share of late requests than allowed."""
        return int((self.late_share > allowed).sum())


@dataclass(frozen=True)
class CapacityLoss:
    """The peak right after a loss.

    Attributes:
        lost: "an instance" or "a zone".
        left: the remaining fleet.
        at_peak: simulation of the remaining fleet by type; empty where the peak saturates it.
        waiting_seconds: backlog per request when the replacement serves: 0 where the peak does not
            saturate the remaining fleet, infinity where nothing remains.
    """

    lost: str
    left: FleetMix
    at_peak: tuple[SimulatedFleet, ...]
    waiting_seconds: float


@dataclass(frozen=True)
class SingleTypeFleet:
    """The cheapest fleet of a single type, and the smallest one that meets the limits.

    Attributes:
        at_minimum, below_minimum: simulation of the peak on the smallest fleet that meets the
            limits, and on one instance less; None where that is no instance.
        autoscaled: for each metric, at the highest target that meets the limits all the time, or at
            the lowest one if none does.
    """

    member: FleetMember
    at_minimum: SimulatedFleet
    below_minimum: SimulatedFleet | None
    autoscaled: tuple[ScalingPolicy, ...]


@dataclass(frozen=True)
class Plan:
    """A fleet for a demand.

    Attributes:
        fleet: the cheapest for the peak with headroom and survival.
        at_peak: simulation of the peak, by type.
        policies: the fleet at constant size, and one that follows the demand on a schedule.
        single_type: None where no type alone suffices.
        surviving: the cheapest fleet for each survival; None where there is none.
        allowed: share of late requests that the limits allow.
    """

    inputs: PlanInputs
    fleet: FleetMix
    at_peak: tuple[SimulatedFleet, ...]
    policies: tuple[ScalingPolicy, ...]
    single_type: SingleTypeFleet | None
    surviving: Mapping[Survival, FleetMix | None]
    losses: tuple[CapacityLoss, ...]
    allowed: float

    @property
    def all_policies(self) -> tuple[ScalingPolicy, ...]:
        """`policies`, and those of autoscaling."""
        return (*self.policies, *(self.single_type.autoscaled if self.single_type else ()))


def plan_fleet(instances: Sequence[Instance], inputs: PlanInputs) -> Plan | None:
    """Plan a fleet; None where the available instances do not suffice.

    Args:
        instances: calibrated, at least one, all for the same streams.
    """
    members = tuple(
        FleetMember(each, simulate_response(each.served, inputs.seed).times(each.copies))
        for each in instances
    )
    usable = [member for member in members if member.capacity_per_second > 0]
    return _Planner(inputs, usable).plan() if usable else None


class _Planner:
    """Plans a fleet of the given members."""

    def __init__(self, inputs: PlanInputs, members: Sequence[FleetMember]) -> None:
        self._inputs = inputs
        self._members = members
        self._peak = inputs.curve.peak
        streams = members[0].instance.served.streams
        self._allowed = sum(each.share * (1 - each.limit.percentile / 100) for each in streams)
        self._limit_ms = min(each.limit.latency_ms for each in streams)

    def plan(self) -> Plan | None:
        """Plan as `plan_fleet` does."""
        inputs = self._inputs
        fleet = self._cheapest(self._members, self._peak, inputs.survival)
        if fleet is None:
            return None
        _check_size(fleet)
        return Plan(
            inputs=inputs,
            fleet=fleet,
            at_peak=fleet.simulated(self._peak, inputs.seed),
            policies=(self._constant(fleet), self._scheduled(fleet)),
            single_type=self._single_type(),
            surviving={each: self._cheapest(self._members, self._peak, each) for each in SURVIVALS},
            losses=tuple(self._losses(fleet)),
            allowed=self._allowed,
        )

    def _cheapest(
        self, members: Sequence[FleetMember], per_second: float, survival: Survival
    ) -> FleetMix | None:
        load = per_second * (1 + self._inputs.headroom)
        return cheapest_fleet(members, load, survival, self._inputs.zones, self._inputs.most)

    def _constant(self, fleet: FleetMix) -> ScalingPolicy:
        rates = self._inputs.curve.rates
        charged = np.full(len(rates), fleet.instances)
        return ScalingPolicy("constant", charged, fleet.usd_per_hour, fleet.late_share(rates))

    def _scheduled(self, peak_fleet: FleetMix) -> ScalingPolicy:
        """Size the fleet for the known demand, ahead of it by the start-up time."""
        curve = self._inputs.curve
        delay = max(self._delay(member) for member in self._members)
        steps_ahead = int(np.ceil(delay / curve.step_seconds))
        load = np.max([np.roll(curve.rates, -step) for step in range(steps_ahead + 1)], axis=0)
        if len(np.unique(load)) > _MAX_RATES:
            unit = self._peak / _MAX_RATES
            load = np.minimum(np.ceil(load / unit) * unit, self._peak)
        fleets = {
            rate: self._cheapest(self._members, rate, self._inputs.survival) or peak_fleet
            for rate in set(load.tolist())
            if rate > 0
        }
        smallest = min(fleets.values(), key=lambda fleet: fleet.usd_per_hour)
        over_time = [fleets.get(rate, smallest) for rate in load.tolist()]
        late = [
            fleet.late_share(np.array([rate]))[0]
            for fleet, rate in zip(over_time, curve.per_second, strict=True)
        ]
        cost = sum(fleet.usd_per_hour for fleet in over_time) / len(over_time)
        charged = np.array([fleet.instances for fleet in over_time])
        return ScalingPolicy("scheduled", charged, cost, np.array(late))

    def _single_type(self) -> SingleTypeFleet | None:
        fleets = [
            (fleet, member)
            for member in self._members
            if (fleet := self._cheapest([member], self._peak, self._inputs.survival)) is not None
        ]
        if not fleets:
            return None
        fleet, member = min(fleets, key=lambda each: each[0].usd_per_hour)
        _check_size(fleet)
        below, at_minimum = self._around_minimum(member)
        most = MOST_AUTOSCALED * fleet.instances
        return SingleTypeFleet(
            member=member,
            at_minimum=at_minimum,
            below_minimum=below,
            autoscaled=tuple(self._autoscaled(member, metric, most) for metric in METRICS),
        )

    def _around_minimum(self, member: FleetMember) -> tuple[SimulatedFleet | None, SimulatedFleet]:
        """Find the largest fleet that misses the limits at the peak, and the next larger one.

        The search starts from the response of one instance, which is accurate to about 1 %.
        """

        def simulated(instances: int) -> SimulatedFleet:
            return member.simulated(instances, self._peak, self._inputs.seed)

        guess = member.fewest(self._peak)
        corrections = _CORRECTIONS if guess <= _MAX_CORRECTED else 0
        fleet = simulated(guess)
        while not fleet.keeps_limits and fleet.instances < guess + corrections:
            fleet = simulated(fleet.instances + 1)
        while fleet.instances > 1:
            smaller = simulated(fleet.instances - 1)
            if not smaller.keeps_limits or fleet.instances <= guess - corrections:
                return smaller, fleet
            fleet = smaller
        return None, fleet

    def _autoscaled(self, member: FleetMember, metric: Metric, most: int) -> ScalingPolicy:
        policy = self._tracked(member, metric, _TARGET_SHARES[0], most)
        for share in _TARGET_SHARES[1:]:
            if policy.missed_steps(self._allowed) == 0:
                return policy
            policy = self._tracked(member, metric, share, most)
        return policy

    def _tracked(
        self, member: FleetMember, metric: Metric, share: float, most: int
    ) -> ScalingPolicy:
        """Autoscale by a metric, whose target is its value at a share of the capacity."""
        curve, response = self._inputs.curve, member.response
        rate = share * response.most_within_per_second
        target = target_at(response, metric, rate)
        policy = TargetTracking(metric, target, self._delay(member), most=most)
        initial = max(1, int(np.ceil(curve.per_second[0] / rate)))
        fleet = autoscale(curve, response, self._limit_ms, policy, initial)
        hourly = member.instance.price.usd_per_hour * float(fleet.charged.mean())
        return ScalingPolicy(
            f"scaled on {metric}", fleet.charged, hourly, _late_by_step(fleet, curve), policy
        )

    def _delay(self, member: FleetMember) -> float:
        return self._inputs.launch_seconds + member.instance.setup_seconds

    def _losses(self, fleet: FleetMix) -> Iterator[CapacityLoss]:
        for lost, left in (
            ("an instance", fleet.without_an_instance()),
            ("a zone", fleet.without_a_zone(self._inputs.zones)),
        ):
            if left.instances == 0:
                yield CapacityLoss(lost, left, (), float("inf"))
                continue
            utilisation = self._peak / left.saturation_per_second
            delay = max(self._delay(member) for member in self._members)
            at_peak = left.simulated(self._peak, self._inputs.seed) if utilisation < 1 else ()
            yield CapacityLoss(lost, left, at_peak, max(0.0, (utilisation - 1) * delay))


def _check_size(fleet: FleetMix) -> None:
    if fleet.instances > MAX_INSTANCES:
        raise UsageError(
            f"the peak of the demand needs {fleet.instances:,} instances, and a plan can have at "
            f"most {MAX_INSTANCES:,}, as it simulates each of them: plan a part of the demand"
        )


def _late_by_step(fleet: AutoscaledFleet, curve: DemandCurve) -> NDArray[np.float64]:
    """Return the shares of late requests by steps of the demand, shape [steps]."""
    seconds = (np.arange(len(fleet.late_share)) + 0.5) * TICK_SECONDS
    steps = len(curve.per_second)
    step = np.minimum(seconds // curve.step_seconds, steps - 1).astype(int)
    late = np.bincount(step, fleet.per_second * fleet.late_share, steps)
    requests = np.bincount(step, fleet.per_second, steps)
    shares: NDArray[np.float64] = np.divide(late, requests, out=np.zeros(steps), where=requests > 0)
    return shares

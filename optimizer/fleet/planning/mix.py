"""A fleet of one type or several under a load that each instance has its share of. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.fleet_simulation import SimulatedFleet, simulate_fleet
from optimizer.fleet.planning.instance import Instance
from optimizer.fleet.planning.load_response import Response


@dataclass(frozen=True)
class FleetMember:
    """An instance type that fleets may be made of, and what one does under load."""

    instance: Instance
    response: Response

    @property
    def capacity_per_second(self) -> float:
        """To be counted on: the lower bound that was measured; what is simulated if less."""
        low = self.instance.capacity_low_per_second
        return min(low, self.response.most_within_per_second)

    def least(self, per_second: float) -> int:
        """Instances below which the limit is missed, by the simulation."""
        return max(1, math.ceil(per_second / self.response.most_within_per_second - 1e-9))

    def simulated(self, instances: int, per_second: float, seed: int) -> SimulatedFleet:
        """So many of it, all simulated, under a load of theirs."""
        instance = self.instance
        found = simulate_fleet(instance.parts, instances * instance.copies, per_second, seed)
        return replace(found, instances=instances)


@dataclass(frozen=True)
class FleetMix:
    """Members, and how many there are of each. A balancer weighs them by their capacity."""

    members: tuple[FleetMember, ...]
    counts: tuple[int, ...]

    @property
    def instances(self) -> int:
        """Of all types."""
        return sum(self.counts)

    @property
    def usd_per_hour(self) -> float:
        """Of all instances."""
        return sum(m.instance.price.usd_per_hour * n for m, n in self._each())

    @property
    def capacity_per_second(self) -> float:
        """That is to be counted on, of all instances."""
        return sum(m.capacity_per_second * n for m, n in self._each())

    def late_share(self, per_second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of the requests, under steady loads of the whole mix; shape as given."""
        use = per_second / self.capacity_per_second
        late = np.zeros_like(per_second)
        for member, count in self._each():
            capacity = member.capacity_per_second
            portion = capacity * count / self.capacity_per_second
            late += portion * member.response.late_share_at(use * capacity)
        return late

    def simulated(self, per_second: float, seed: int) -> tuple[SimulatedFleet, ...]:
        """Every instance, by type; types of which there is none are left out."""
        whole = self.capacity_per_second
        return tuple(
            member.simulated(count, per_second * (member.capacity_per_second * count / whole), seed)
            for member, count in self._each()
        )

    @property
    def saturation_per_second(self) -> float:
        """Where the first type saturates, as loads grow."""
        return self.capacity_per_second * min(
            m.response.saturation_per_second / m.capacity_per_second for m, _ in self._each()
        )

    def without_an_instance(self) -> FleetMix:
        """Less one of the type that serves most."""
        there = [n for n, count in enumerate(self.counts) if count]
        largest = max(there, key=lambda n: self.members[n].capacity_per_second)
        return FleetMix(self.members, tuple(c - (n == largest) for n, c in enumerate(self.counts)))

    def without_a_zone(self, zones: int) -> FleetMix:
        """Less what lies in the fullest of so many zones."""
        left = tuple(count - math.ceil(count / zones) for count in self.counts)
        return FleetMix(self.members, left)

    def _each(self) -> Sequence[tuple[FleetMember, int]]:
        return [(m, n) for m, n in zip(self.members, self.counts, strict=True) if n]


def keeps_limits(found: Sequence[SimulatedFleet]) -> bool:
    """Whether every type does."""
    return all(each.keeps_limits for each in found)

"""A fleet of one instance type or several, under a load that its instances share."""

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
    """An instance type that a fleet may have, and how one instance responds to load."""

    instance: Instance
    response: Response

    @property
    def capacity_per_second(self) -> float:
        """The lower of the measured lower bound and the simulated capacity."""
        low = self.instance.capacity_low_per_second
        return min(low, self.response.most_within_per_second)

    def fewest(self, per_second: float) -> int:
        """Return the fewest instances with which a simulated load meets the limits."""
        return max(1, math.ceil(per_second / self.response.most_within_per_second - 1e-9))

    def simulated(self, instances: int, per_second: float, seed: int) -> SimulatedFleet:
        """Simulate a number of instances under a load."""
        instance = self.instance
        fleet = simulate_fleet(instance.served, instances * instance.copies, per_second, seed)
        return replace(fleet, instances=instances)


@dataclass(frozen=True)
class FleetMix:
    """Members and their counts. The load balancer weights them by capacity."""

    members: tuple[FleetMember, ...]
    counts: tuple[int, ...]

    @property
    def instances(self) -> int:
        """Number of instances of all types."""
        return sum(self.counts)

    @property
    def usd_per_hour(self) -> float:
        """Price of all instances."""
        return sum(m.instance.price.usd_per_hour * n for m, n in self._counted())

    @property
    def capacity_per_second(self) -> float:
        """Capacity of all instances, as of `FleetMember`."""
        return sum(m.capacity_per_second * n for m, n in self._counted())

    def late_share(self, per_second: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of late requests under steady loads of the mix; same shape."""
        load_factor = per_second / self.capacity_per_second
        late = np.zeros_like(per_second)
        for member, count in self._counted():
            capacity = member.capacity_per_second
            portion = capacity * count / self.capacity_per_second
            late += portion * member.response.late_share_at(load_factor * capacity)
        return late

    def simulated(self, per_second: float, seed: int) -> tuple[SimulatedFleet, ...]:
        """Simulate every instance; return the types of the mix."""
        total = self.capacity_per_second
        return tuple(
            member.simulated(count, per_second * (member.capacity_per_second * count / total), seed)
            for member, count in self._counted()
        )

    @property
    def saturation_per_second(self) -> float:
        """Load at which the first type saturates."""
        return self.capacity_per_second * min(
            m.response.saturation_per_second / m.capacity_per_second for m, _ in self._counted()
        )

    def without_an_instance(self) -> FleetMix:
        """Return the mix without one instance of the type with the highest capacity."""
        present = [n for n, count in enumerate(self.counts) if count]
        largest = max(present, key=lambda n: self.members[n].capacity_per_second)
        return FleetMix(self.members, tuple(c - (n == largest) for n, c in enumerate(self.counts)))

    def without_a_zone(self, zones: int) -> FleetMix:
        """Return the mix without the fullest zone."""
        left = tuple(count - math.ceil(count / zones) for count in self.counts)
        return FleetMix(self.members, left)

    def _counted(self) -> Sequence[tuple[FleetMember, int]]:
        return [(m, n) for m, n in zip(self.members, self.counts, strict=True) if n]


def keeps_limits(fleets: Sequence[SimulatedFleet]) -> bool:
    """Return whether every type meets its limits."""
    return all(each.keeps_limits for each in fleets)

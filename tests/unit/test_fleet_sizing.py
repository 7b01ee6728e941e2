from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from optimizer.fleet.planning.load_response import Response
from optimizer.fleet.planning.mix import FleetMember, FleetMix
from optimizer.fleet.planning.sizing import Survival, cheapest_fleet
from tests.unit.instances import instance

ZONES = 3
FLAT = np.array([0.0, 1.0])


def member(name: str, capacity: float, usd_per_hour: float) -> FleetMember:
    """One that serves what it is said to."""
    response = Response(FLAT, FLAT, FLAT, FLAT, FLAT, 1.1 * capacity, capacity)
    return FleetMember(instance(name, usd_per_hour, capacity), response)


SMALL, LARGE, ODD = member("s", 100.0, 1.0), member("l", 450.0, 4.0), member("o", 170.0, 1.6)


def enough(mix: FleetMix, load: float, survival: Survival) -> bool:
    """By taking away each thing that may be lost."""
    left = [mix.capacity_per_second]
    pairs = list(zip(mix.members, mix.counts, strict=True))
    if survival == "instance":
        left += [left[0] - m.capacity_per_second for m, count in pairs if count]
    if survival == "zone":
        taken = [m.capacity_per_second * math.ceil(count / ZONES) for m, count in pairs]
        left.append(left[0] - sum(taken))
    return min(left) >= load - 1e-6


def by_trying(members: tuple[FleetMember, ...], load: float, survival: Survival) -> float:
    """Cost of the cheapest of all that could do."""
    most = [2 * math.ceil(load / m.capacity_per_second) + ZONES for m in members]
    mixes = (FleetMix(members, counts) for counts in product(*(range(n + 1) for n in most)))
    return min(mix.usd_per_hour for mix in mixes if enough(mix, load, survival))


@pytest.mark.parametrize("survival", ["nothing", "instance", "zone"])
@pytest.mark.parametrize("load", [90.0, 100.0, 455.0, 620.0, 1000.0])
def test_nothing_cheaper_would_do(load: float, survival: Survival) -> None:
    members = (SMALL, LARGE, ODD)
    found = cheapest_fleet(members, load, survival, ZONES)
    assert found is not None
    assert enough(found, load, survival)
    assert found.usd_per_hour == pytest.approx(by_trying(members, load, survival))


def test_two_types_may_be_cheaper_than_either() -> None:
    alone = [cheapest_fleet([each], 550.0) for each in (SMALL, LARGE)]
    assert [each.usd_per_hour for each in alone if each] == [6.0, 8.0]
    both = cheapest_fleet([SMALL, LARGE], 550.0)
    assert both is not None
    assert (both.counts, both.usd_per_hour) == ((1, 1), 5.0)


def test_no_more_are_taken_than_can_be_had() -> None:
    found = cheapest_fleet([SMALL, LARGE], 1000.0, most={"l": 1})
    assert found is not None
    assert found.counts == (6, 1)
    assert cheapest_fleet([SMALL], 1000.0, most={"s": 9}) is None


def test_members_of_one_type_are_had_together() -> None:
    other = replace(
        LARGE, instance=replace(LARGE.instance, name="other", price=SMALL.instance.price)
    )
    found = cheapest_fleet([SMALL, other], 2250.0, most={"s": 5})
    assert found is not None
    assert found.counts == (0, 5)
    assert cheapest_fleet([SMALL, other], 2300.0, most={"s": 5}) is None


@pytest.mark.parametrize("survival", ["nothing", "instance", "zone"])
def test_thousands_of_instances_are_counted_exactly(survival: Survival) -> None:
    found = cheapest_fleet([SMALL], 400_000.0, survival, ZONES)
    assert found is not None
    assert found.instances == {"nothing": 4000, "instance": 4001, "zone": 6000}[survival]


def test_each_instance_has_its_share_by_its_capacity() -> None:
    curved = replace(
        LARGE.response, per_second=np.array([0.0, 450.0]), late_share=np.array([0.0, 0.9])
    )
    mix = FleetMix((SMALL, replace(LARGE, response=curved)), (1, 1))
    # At half of its capacity 45 % of the large one's requests are late, and it has 450 of 550.
    [late] = mix.late_share(np.array([275.0]))
    assert late == pytest.approx(450 / 550 * 0.45 + 100 / 550 * 1.0)


def test_losses_take_the_largest_and_the_fullest_zone() -> None:
    mix = FleetMix((SMALL, LARGE), (4, 2))
    assert mix.without_an_instance().counts == (4, 1)
    assert mix.without_a_zone(3).counts == (2, 1)
    assert mix.saturation_per_second == pytest.approx(1.1 * mix.capacity_per_second)

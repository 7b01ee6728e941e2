"""The cheapest fleet for a load, of one instance type or several, as an integer program. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from optimizer.fleet.planning.mix import FleetMember, FleetMix

Survival = Literal["nothing", "instance", "zone"]
"""What may be lost, one at a time, while what is left still serves the load within the limit."""


def cheapest_fleet(
    members: Sequence[FleetMember],
    per_second: float,
    survival: Survival = "nothing",
    zones: int = 3,
    most: Mapping[str, int] | None = None,
) -> FleetMix | None:
    """The mix that costs least and serves a load; None where what can be had does not suffice.

    Each member is spread evenly over the zones: the fullest has the whole number above its share.

    Args:
        zones: two at least, to survive the loss of one.
        most: instances that can be had, by instance type; members of one type share them.
    """
    # scipy.optimize takes long to import.
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(members)
    capacity = np.array([member.capacity_per_second for member in members])
    prices = [member.instance.price for member in members]
    enough = np.ceil(per_second / capacity) + 1
    if survival == "zone":
        # What is left is at least a half.
        enough = 2 * enough + zones
    types = np.array([price.instance_type for price in prices])
    had = [
        LinearConstraint(np.concatenate([types == name, np.zeros(count)]), ub=number)
        for name, number in (most or {}).items()
    ]
    identity = np.eye(count)
    # Beside each count a number that says what a loss takes of it.
    if survival == "zone":
        left = np.array([np.concatenate([capacity, -capacity])])
        takes = np.hstack([-identity, zones * identity])
    elif survival == "instance":
        left = np.hstack([np.tile(capacity, (count, 1)), -np.diag(capacity)])
        takes = np.hstack([-identity, np.diag(enough)])
    else:
        left = np.array([np.concatenate([capacity, np.zeros(count)])])
        takes = np.zeros((count, 2 * count))
    found = milp(
        np.concatenate([[price.usd_per_hour for price in prices], np.zeros(count)]),
        integrality=np.ones(2 * count),
        bounds=Bounds(0, np.concatenate([enough, enough])),
        constraints=[
            LinearConstraint(left / per_second, lb=1 - 1e-9),
            LinearConstraint(takes, lb=0),
            *had,
        ],
        options={"mip_rel_gap": 0.0},
    )
    if found.x is None:
        return None
    return FleetMix(tuple(members), tuple(round(n) for n in found.x[:count]))

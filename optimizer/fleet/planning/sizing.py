"""The cheapest fleet for a load, of one instance type or several, as an integer program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.mix import FleetMember, FleetMix

Survival = Literal["nothing", "instance", "zone"]
"""What may fail, one at a time, while the rest still serves the load within the limits."""


def cheapest_fleet(
    members: Sequence[FleetMember],
    per_second: float,
    survival: Survival = "nothing",
    zones: int = 3,
    most: Mapping[str, int] | None = None,
) -> FleetMix | None:
    """Return the cheapest mix for a load; None if the available instances do not suffice.

    Each member is spread evenly over the zones; the fullest zone has its share, rounded up.

    Args:
        zones: at least two, to survive the loss of one.
        most: available instances, by instance type; members of one type share them.
    """
    # Importing scipy.optimize takes long.
    from scipy.optimize import Bounds, LinearConstraint, milp

    count = len(members)
    capacity = np.array([member.capacity_per_second for member in members])
    enough = np.ceil(per_second / capacity) + 1
    if survival == "zone":
        # At least half of the instances remain.
        enough = 2 * enough + zones
    prices = [member.instance.price for member in members]
    types = np.array([price.instance_type for price in prices])
    remaining, losses = _survival_rows(capacity, enough, survival, zones)
    solution = milp(
        np.concatenate([[price.usd_per_hour for price in prices], np.zeros(count)]),
        integrality=np.ones(2 * count),
        bounds=Bounds(0, np.concatenate([enough, enough])),
        constraints=[
            LinearConstraint(remaining / per_second, lb=1 - 1e-9),
            LinearConstraint(losses, lb=0),
            *(
                LinearConstraint(np.concatenate([types == name, np.zeros(count)]), ub=number)
                for name, number in (most or {}).items()
            ),
        ],
        options={"mip_rel_gap": 0.0},
    )
    if solution.x is None:
        return None
    return FleetMix(tuple(members), tuple(round(n) for n in solution.x[:count]))


def _survival_rows(
    capacity: NDArray[Any], enough: NDArray[Any], survival: Survival, zones: int
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the constraints of a loss, over the members' counts followed by what a loss takes.

    Args:
        capacity: of one instance of each member, shape [members].
        enough: upper bounds of the counts, shape [members].

    Returns:
        Rows of the remaining capacity, which must reach the load, and rows that must be at least 0:
        a zone takes the count over the zones, an instance takes one of a member in the fleet.
    """
    identity = np.eye(len(capacity))
    if survival == "zone":
        remaining = np.array([np.concatenate([capacity, -capacity])])
        return remaining, np.hstack([-identity, zones * identity])
    if survival == "instance":
        remaining = np.hstack([np.tile(capacity, (len(capacity), 1)), -np.diag(capacity)])
        return remaining, np.hstack([-identity, np.diag(enough)])
    remaining = np.array([np.concatenate([capacity, np.zeros(len(capacity))])])
    return remaining, np.zeros((len(capacity), 2 * len(capacity)))

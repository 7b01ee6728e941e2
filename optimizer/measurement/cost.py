"""Cost of a capacity.

The search minimises the continuous cost at capacity; the recommendation counts whole replicas.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from optimizer.configuration.serving_config import PRECISION_RANK, ServingConfig
from optimizer.measurement.level import Measurement

ON_DEMAND, OWNED = "on-demand", "owned"
EXAMPLE = "example"
"""Source of a made-up price, as in the files that `init` writes."""


@dataclass(frozen=True, slots=True)
class Price:
    """Price of one instance, and its source.

    Attributes:
        as_of: day or month, or "undated".
        region: "" where it is unknown.
        rate: on-demand, spot, reserved or owned; only prices of one rate are compared.
    """

    instance_type: str
    usd_per_hour: float
    source: str
    as_of: str
    region: str = ""
    rate: str = ON_DEMAND

    @property
    def is_example(self) -> bool:
        """Whether the price is made up."""
        return self.source == EXAMPLE

    @property
    def basis(self) -> str:
        """The source without the region."""
        return self.source.removesuffix(f", {self.region}")


_HOURS_PER_YEAR = 8766


@dataclass(frozen=True, slots=True)
class Purchase:
    """A machine that is owned.

    Attributes:
        usd: purchase price.
        lifetime_years: period of the depreciation.
        watts: power draw, cooling included.
    """

    usd: float
    lifetime_years: float
    watts: float
    usd_per_kwh: float

    @property
    def usd_per_hour(self) -> float:
        """Straight-line depreciation and power of a machine that runs all the time."""
        power = self.watts / 1000 * self.usd_per_kwh
        return self.usd / (self.lifetime_years * _HOURS_PER_YEAR) + power


@dataclass(frozen=True, slots=True)
class Demand:
    """Load that the fleet must serve.

    Attributes:
        headroom: spare capacity relative to the demand.
        inferences_per_request: the client's own batch size.
    """

    requests_per_second: float
    headroom: float = 0.0
    inferences_per_request: int = 1


@dataclass(frozen=True, slots=True)
class Score:
    """Cost of a capacity.

    Attributes:
        usd_per_million_at_capacity: cost of one replica at its capacity; the search minimises it.
        replicas: instances that serve the demand, by the lower bound of the capacity.
        fleet_usd_per_hour: replicas x price.
        usd_per_million_at_demand: the fleet's price divided by the demand.
    """

    usd_per_million_at_capacity: float
    replicas: int
    fleet_usd_per_hour: float
    usd_per_million_at_demand: float


def usd_per_million(
    usd_per_hour: float, requests_per_second: float, inferences_per_request: int = 1
) -> float:
    """Return dollars per million inferences. Raises ValueError unless the rate is above 0."""
    if requests_per_second <= 0:
        raise ValueError(f"requests_per_second must be above 0, got {requests_per_second}")
    return usd_per_hour / (requests_per_second * inferences_per_request * 3600) * 1e6


def replicas_for(demand: Demand, capacity_low_per_second: float) -> int:
    """Return the instances for a demand. Raises ValueError unless the capacity is above 0."""
    if capacity_low_per_second <= 0:
        raise ValueError(f"capacity must be above 0 requests/s, got {capacity_low_per_second}")
    needed = demand.requests_per_second * (1 + demand.headroom) / capacity_low_per_second
    return max(1, math.ceil(needed - 1e-9))


def score(
    capacity_per_second: float, capacity_low_per_second: float, price: Price, demand: Demand
) -> Score:
    """Return the cost of serving `demand`. Raises ValueError unless capacities are above 0."""
    replicas = replicas_for(demand, capacity_low_per_second)
    fleet, each = replicas * price.usd_per_hour, demand.inferences_per_request
    return Score(
        usd_per_million_at_capacity=usd_per_million(price.usd_per_hour, capacity_per_second, each),
        replicas=replicas,
        fleet_usd_per_hour=fleet,
        usd_per_million_at_demand=usd_per_million(fleet, demand.requests_per_second, each),
    )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A configuration that may be recommended."""

    config: ServingConfig
    measurement: Measurement
    score: Score
    p95_ms_at_demand: float


def tie_break_key(candidate: Candidate) -> tuple[float, ...]:
    """Return the sort key among fleets of equal cost, best first.

    Higher precision, lower p95 at demand per replica, higher capacity, fewer instances, shorter
    queue delay. Precision comes first so that INT8 never wins while it saves nothing. (Decision
    2026-11-23: costs are equal only where the fleets, sized by the lower bounds of the capacities,
    cost the same. Counting a fleet that would be as cheap at the upper bound recommended four
    replicas over three confirmed ones.)
    """
    models = candidate.config.models
    return (
        -min(PRECISION_RANK[model.artifact.precision] for model in models),
        candidate.p95_ms_at_demand,
        -candidate.measurement.capacity_per_second,
        sum(model.instance_count for model in models),
        sum(m.batching.max_queue_delay_us for m in models if m.batching is not None),
    )

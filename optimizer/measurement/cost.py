"""From capacity to dollars. Pure.

The search minimises the continuous cost at capacity; the recommendation counts whole replicas.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from optimizer.configuration.serving_config import PRECISION_RANK, ServingConfig
from optimizer.measurement.level import Measurement

ON_DEMAND, OWNED = "on-demand", "owned"
EXAMPLE = "example"
"""Source of a price that is made up."""


@dataclass(frozen=True)
class Price:
    """What one instance costs, and who says so.

    Attributes:
        as_of: day or month, "undated" where it is not known.
        region: "" where it is not known.
        rate: on-demand, spot, reserved, or owned: what a price may be compared with.
    """

    instance_type: str
    usd_per_hour: float
    source: str
    as_of: str
    region: str = ""
    rate: str = ON_DEMAND

    @property
    def is_example(self) -> bool:
        """Whether it is made up, as the price of a file that `init` has written."""
        return self.source == EXAMPLE

    @property
    def basis(self) -> str:
        """The source without the region."""
        return self.source.removesuffix(f", {self.region}")


_HOURS_PER_YEAR = 8766


@dataclass(frozen=True)
class Purchase:
    """A machine that is owned.

    Attributes:
        usd: what it cost.
        lifetime_years: over which that is spread.
        watts: that it draws, cooling included.
    """

    usd: float
    lifetime_years: float
    watts: float
    usd_per_kwh: float

    @property
    def usd_per_hour(self) -> float:
        """Straight-line depreciation and power; it runs all the time."""
        power = self.watts / 1000 * self.usd_per_kwh
        return self.usd / (self.lifetime_years * _HOURS_PER_YEAR) + power


@dataclass(frozen=True)
class Demand:
    """What the fleet must serve.

    Attributes:
        headroom: share kept free above the demand.
        inferences_per_request: what one request asks for, the client's own batch.
    """

    requests_per_second: float
    headroom: float = 0.0
    inferences_per_request: int = 1


@dataclass(frozen=True)
class Score:
    """What a capacity costs.

    Attributes:
        usd_per_million_at_capacity: one replica kept at its capacity; what the search minimises.
        replicas: instances that serve the demand, by the lower bound of the capacity.
        fleet_usd_per_hour: replicas x price.
        usd_per_million_at_demand: the fleet's price spread over the demand.
    """

    usd_per_million_at_capacity: float
    replicas: int
    fleet_usd_per_hour: float
    usd_per_million_at_demand: float


def usd_per_million(
    usd_per_hour: float, requests_per_second: float, inferences_per_request: int = 1
) -> float:
    """Dollars per million inferences at a steady rate. Raises ValueError unless the rate is > 0."""
    if requests_per_second <= 0:
        raise ValueError(f"requests_per_second must be above 0, got {requests_per_second}")
    return usd_per_hour / (requests_per_second * inferences_per_request * 3600) * 1e6


def replicas_for(demand: Demand, capacity_low_per_second: float) -> int:
    """Whole instances for the demand and its headroom. Raises ValueError unless capacity > 0."""
    if capacity_low_per_second <= 0:
        raise ValueError(f"capacity must be above 0 requests/s, got {capacity_low_per_second}")
    needed = demand.requests_per_second * (1 + demand.headroom) / capacity_low_per_second
    return max(1, math.ceil(needed - 1e-9))


def score(
    capacity_per_second: float, capacity_low_per_second: float, price: Price, demand: Demand
) -> Score:
    """Cost of serving `demand` with replicas of this capacity. Raises ValueError at capacity 0."""
    replicas = replicas_for(demand, capacity_low_per_second)
    fleet, each = replicas * price.usd_per_hour, demand.inferences_per_request
    return Score(
        usd_per_million_at_capacity=usd_per_million(price.usd_per_hour, capacity_per_second, each),
        replicas=replicas,
        fleet_usd_per_hour=fleet,
        usd_per_million_at_demand=usd_per_million(fleet, demand.requests_per_second, each),
    )


@dataclass(frozen=True)
class Candidate:
    """A confirmed configuration among which the recommendation is made."""

    config: ServingConfig
    measurement: Measurement
    score: Score
    p95_ms_at_demand: float


def tie_break_key(candidate: Candidate) -> tuple[float, ...]:
    """Order among equal costs, best first.

    Higher precision, lower p95 at demand per replica, higher capacity, fewer instances, shorter
    queue delay. Precision comes first so that INT8 never wins while it saves nothing.
    """
    models = candidate.config.models
    return (
        -min(PRECISION_RANK[model.artifact.precision] for model in models),
        candidate.p95_ms_at_demand,
        -candidate.measurement.capacity_per_second,
        sum(model.instance_count for model in models),
        sum(m.batching.max_queue_delay_us for m in models if m.batching is not None),
    )


def equal_cost_set(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The cheapest fleets, best first by the tie rules: [0] is the recommendation.

    Candidates are equal when their fleets cost the same. The confidence is in the fleets already:
    they are sized by the lower bounds, and whole replicas swallow any smaller difference. (Tried
    and dropped on 2026-11-23: to call a fleet equal that would be as cheap at the upper bound of
    its capacity. It recommended a fleet of four replicas over a confirmed one of three.)
    """
    if not candidates:
        return []
    cheapest = min(candidate.score.fleet_usd_per_hour for candidate in candidates)
    equal = [c for c in candidates if math.isclose(c.score.fleet_usd_per_hour, cheapest)]
    return sorted(equal, key=tie_break_key)

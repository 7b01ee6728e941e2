"""One instance of a fleet: what it was measured to serve, and a simulation that agrees. Pure.

Requests reach instances at random, as most balancers send them: what one instance sees is then
independent arrivals at its share of the rate, whatever the others do. A balancer that knows which
instance is least busy does no worse.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from optimizer.measurement.cost import Price
from optimizer.simulator.prediction import Serving, predict_capacity
from optimizer.workload.arrivals import ArrivalPattern
from optimizer.workload.streams import LatencyLimit

_REQUESTS = 40_000
"""Of each load that is simulated to find a capacity."""

_WIDEST = 3.0
"""Factor by which the service times may be moved to meet the measured capacity."""

_STEPS = 12


@dataclass(frozen=True)
class Part:
    """One stream as an instance serves it.

    Attributes:
        share: of all requests.
        concurrency: requests outstanding under saturation.
    """

    serving: Serving
    arrivals: ArrivalPattern
    limit: LatencyLimit
    concurrency: int
    share: float = 1.0

    @property
    def thinned(self) -> ArrivalPattern:
        """Arrivals at one instance of many: of a steady stream it gets every so many at random."""
        return "poisson" if self.arrivals == "constant" else self.arrivals


@dataclass(frozen=True)
class Instance:
    """One instance type with one configuration.

    Attributes:
        name: of the study that it was measured in; no other one of a fleet has it.
        price: of one.
        capacity_per_second, capacity_low_per_second: requests of all streams within the limits,
            of the whole instance.
        setup_seconds: until its models serve, once its machine is there.
        parts: of its streams, simulated so that the capacity is the measured one.
        copies: of these on the instance, where not all of its GPUs were used: each has its share.
        moved: factor of the service times that was needed for that.
    """

    name: str
    price: Price
    capacity_per_second: float
    capacity_low_per_second: float
    setup_seconds: float
    parts: tuple[Part, ...]
    copies: int = 1
    moved: float = 1.0

    def agreed(self, seed: int) -> Instance:
        """With service times moved until the simulated capacity is the measured one.

        Raises:
            ValueError: where no factor up to 3 does it.
        """
        low, high = -math.log(_WIDEST), math.log(_WIDEST)
        for _ in range(_STEPS):
            middle = (low + high) / 2
            slower = [_slower(part, math.exp(middle)) for part in self.parts]
            if self.copies * simulated_capacity(slower, seed) >= self.capacity_per_second:
                low = middle
            else:
                high = middle
        if low == -math.log(_WIDEST) or high == math.log(_WIDEST):
            raise ValueError(
                f"{self.name}: the simulated capacity must come to the measured "
                f"{self.capacity_per_second:.1f}/s with service times up to {_WIDEST:g} times "
                "as long or short, and does not"
            )
        factor = math.exp((low + high) / 2)
        parts = tuple(_slower(part, factor) for part in self.parts)
        return replace(self, parts=parts, moved=factor)


def _slower(part: Part, factor: float) -> Part:
    curve = part.serving.curve
    longer = replace(
        curve,
        execution_ms=tuple(factor * ms for ms in curve.execution_ms),
        wake_ms=factor * curve.wake_ms,
    )
    return replace(part, serving=replace(part.serving, curve=longer))


def simulated_capacity(parts: Sequence[Part], seed: int) -> float:
    """Requests a second of all streams within the limits, as a measurement would find it.

    Of one copy.
    """
    return min(_capacity(part, seed) / part.share for part in parts)


def _capacity(part: Part, seed: int) -> float:
    found = predict_capacity(
        part.serving, part.arrivals, part.limit, part.concurrency, seed, _REQUESTS, 0.002
    )
    return found.per_second

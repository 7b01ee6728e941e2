"""One instance of a fleet: its measured capacity, and a simulation that is calibrated to it.

Requests reach instances at random, as with most load balancers: arrivals at one instance are then
independent of the others, at its share of the rate. A balancer that picks the least busy instance
does no worse.
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
"""Simulated requests of each load of a capacity search."""

_MAX_FACTOR = 3.0
"""Largest scaling of service times that calibrates the simulation to the measured capacity."""

_BISECTIONS = 12


@dataclass(frozen=True)
class Part:
    """One stream as an instance serves it.

    Attributes:
        share: of all requests.
        concurrency: outstanding requests at saturation.
    """

    serving: Serving
    arrivals: ArrivalPattern
    limit: LatencyLimit
    concurrency: int
    share: float = 1.0

    @property
    def thinned(self) -> ArrivalPattern:
        """Arrivals at one of many instances: a random part of constant arrivals is Poisson."""
        return "poisson" if self.arrivals == "constant" else self.arrivals


@dataclass(frozen=True)
class Instance:
    """One instance type with one configuration.

    Attributes:
        name: of the study that measured it, unique in a fleet.
        price: of one instance.
        capacity_per_second, capacity_low_per_second: of the whole instance, over all streams, with
            its lower bound.
        setup_seconds: from a running machine until its models serve.
        setup_measured: whether that was measured from the start of the server; otherwise it is what
            the trial took to serve the models.
        parts: its streams, with service times that give the measured capacity.
        copies: of `parts` on the instance; several where only some of its GPUs were measured.
        moved: factor by which the service times were scaled.
    """

    name: str
    price: Price
    capacity_per_second: float
    capacity_low_per_second: float
    setup_seconds: float
    parts: tuple[Part, ...]
    copies: int = 1
    moved: float = 1.0
    setup_measured: bool = False

    def calibrated(self, seed: int) -> Instance:
        """Return the instance with service times scaled to the measured capacity.

        Raises:
            ValueError: where no factor up to 3 suffices.
        """
        low, high = -math.log(_MAX_FACTOR), math.log(_MAX_FACTOR)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            slower = [_slower(part, math.exp(middle)) for part in self.parts]
            if self.copies * simulated_capacity(slower, seed) >= self.capacity_per_second:
                low = middle
            else:
                high = middle
        if low == -math.log(_MAX_FACTOR) or high == math.log(_MAX_FACTOR):
            raise ValueError(
                f"{self.name}: the simulation does not reach the measured capacity of "
                f"{self.capacity_per_second:.1f}/s with service times scaled by up to "
                f"{_MAX_FACTOR:g}; measure the configuration again"
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
    """Return the capacity of one copy over all streams, as a measurement would find it."""
    return min(
        predict_capacity(
            part.serving, part.arrivals, part.limit, part.concurrency, seed, _REQUESTS, 0.002
        ).per_second
        / part.share
        for part in parts
    )

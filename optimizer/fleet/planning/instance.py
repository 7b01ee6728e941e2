"""One instance of a fleet: its measured capacity, and a simulation that is calibrated to it.

Requests reach instances at random, as with most load balancers: arrivals at one instance are then
independent of the others, at its share of the rate. A balancer that picks the least busy instance
does no worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache

from optimizer.measurement.cost import Price
from optimizer.simulator.network import Network
from optimizer.simulator.prediction import OfferedStream, predict_capacity

_REQUESTS = 40_000
"""Simulated requests of each load of a capacity search."""

_MAX_FACTOR = 3.0
"""Largest scaling of service times that calibrates the simulation to the measured capacity."""

_FACTOR_TOLERANCE = 0.001
"""Of the logarithm of that factor."""


@dataclass(frozen=True)
class ServedStreams:
    """All streams as an instance serves them.

    Attributes:
        streams: of each source of the network.
        concurrency: outstanding requests at saturation.
    """

    network: Network
    streams: tuple[OfferedStream, ...]
    concurrency: int

    @property
    def thinned(self) -> ServedStreams:
        """Return the streams at one of many instances.

        A random part of constant arrivals is Poisson.
        """
        streams = (
            replace(each, arrivals="poisson") if each.arrivals == "constant" else each
            for each in self.streams
        )
        return replace(self, streams=tuple(streams))

    def slower(self, factor: float) -> ServedStreams:
        """Return the same with all service times multiplied."""
        return replace(self, network=self.network.slower(factor))


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
        served: its streams, with service times that give the measured capacity.
        copies: of `served` on the instance; several where only some of its GPUs were measured.
        moved: factor by which the service times were scaled.
    """

    name: str
    price: Price
    capacity_per_second: float
    capacity_low_per_second: float
    setup_seconds: float
    served: ServedStreams
    copies: int = 1
    moved: float = 1.0
    setup_measured: bool = False

    def calibrated(self, seed: int) -> Instance:
        """Return the instance with service times scaled to the measured capacity.

        Raises:
            ValueError: where the measured capacity is not between those that are simulated with
                service times of a third and of three times the length.
        """
        # Importing scipy.optimize takes long.
        from scipy.optimize import brentq

        @cache
        def excess(log_factor: float) -> float:
            slower = self.served.slower(math.exp(log_factor))
            return self.copies * simulated_capacity(slower, seed) - self.capacity_per_second

        most = math.log(_MAX_FACTOR)
        if excess(-most) < 0 or excess(most) > 0:
            simulated = self.capacity_per_second + excess(0.0)
            raise ValueError(
                f"{self.name}: a capacity of {self.capacity_per_second:.1f}/s was measured, but "
                f"the service times of its trials allow {simulated:.1f}/s; the service times may "
                f"be scaled by {_MAX_FACTOR:g} at most. Other processes may have used the machine "
                "while one of the two was measured: measure the configuration again"
            )
        factor = math.exp(brentq(excess, -most, most, xtol=_FACTOR_TOLERANCE))
        return replace(self, served=self.served.slower(factor), moved=factor)


def simulated_capacity(served: ServedStreams, seed: int) -> float:
    """Return the capacity of one copy over all streams, as a measurement would find it."""
    network, streams, concurrency = served.network, served.streams, served.concurrency
    return predict_capacity(network, streams, concurrency, seed, _REQUESTS, 0.002).per_second

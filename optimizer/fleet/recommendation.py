"""Instance types ranked by what a fleet of each costs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from optimizer.configuration.serving_config import describe
from optimizer.errors import UsageError
from optimizer.fleet.instance_estimate import (
    METRICS,
    InstanceEstimate,
    Observation,
    estimate_extrapolated,
    estimate_measured,
)
from optimizer.fleet.price_list import ListedPrice
from optimizer.fleet.price_rules import listed_instance, same_gpu
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import Demand, Price

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StudyObservations:
    """A machine and what was measured on it.

    Attributes:
        study: by the name that it is shown under.
        price: that is charged for the machine.
        observations: of configurations within the limits, in any order.
        nothing: why there is none.
    """

    study: str
    price: Price
    machine: Machine
    observations: tuple[Observation, ...]
    nothing: str | None = None


@dataclass(frozen=True)
class Recommendation:
    """What serves a demand, best first.

    Attributes:
        nothing: (study, reason) where nothing was within the limits.
        accepted: what does not fit together, and the user wanted all the same.
    """

    demand: Demand
    offers: tuple[InstanceEstimate, ...]
    nothing: tuple[tuple[str, str], ...]
    accepted: tuple[str, ...] = ()

    @property
    def best_measured(self) -> InstanceEstimate | None:
        """The best that nothing was extrapolated for."""
        return next((offer for offer in self.offers if offer.extrapolated is None), None)

    def to_json(self) -> dict[str, Any]:
        """For programs: every figure with its unit and what it rests on."""
        return {
            "schema_version": SCHEMA_VERSION,
            "demand_per_second": self.demand.requests_per_second,
            "headroom": self.demand.headroom,
            "offers": [_offer_to_json(offer) for offer in self.offers],
            "nothing_within_the_limits": dict(self.nothing),
            "accepted": list(self.accepted),
        }


def _offer_to_json(offer: InstanceEstimate) -> dict[str, Any]:
    config = offer.candidate.config
    return {
        "instance_type": offer.price.instance_type,
        "study": offer.study,
        "description": describe(config),
        "config": asdict(config),
        "price": asdict(offer.price),
        "extrapolated": offer.extrapolated,
        "warnings": list(offer.warnings),
        "latency_percentile": offer.latency_percentile,
        "metrics": {
            name: {**asdict(figure), "unit": METRICS[name]} if figure is not None else None
            for name, figure in offer.metrics.items()
        },
    }


def recommend(
    studied: Sequence[StudyObservations],
    others: Sequence[ListedPrice],
    listed: Sequence[ListedPrice],
    demand: Demand,
    *,
    every_configuration: bool = False,
) -> Recommendation:
    """Rank what was measured, and other instance types with the same GPUs.

    Args:
        others: instance types that nobody has measured.
        listed: says what the measured ones have.
        every_configuration: of a study, not its best alone.

    Raises:
        UsageError: where the GPU of one of the others was not measured.
    """
    offers: list[InstanceEstimate] = []
    for each in studied:
        instance = listed_instance(listed, each.price.instance_type)
        own = [estimate_measured(o, each.price, instance, demand) for o in each.observations]
        own.sort(key=lambda offer: offer.rank)
        offers += own if every_configuration else own[:1]
    nothing = [(each.study, each.nothing) for each in studied if each.nothing is not None]
    for entry in others:
        seen = studies_with_gpu(entry, [(each.study, each.machine) for each in studied])
        within = [each for each in studied if each.study in seen and each.observations]
        if within:
            base = min(within, key=lambda each: _unlikeness(entry, each.machine))
            elsewhere = [estimate_extrapolated(o, entry, demand) for o in base.observations]
            offers.append(min(elsewhere, key=lambda offer: offer.rank))
        else:
            reason = f"no study on {entry.gpu} has anything within the limits"
            nothing.append((entry.price.instance_type, reason))
    return Recommendation(demand, tuple(sorted(offers, key=lambda o: o.rank)), tuple(nothing))


def studies_with_gpu(entry: ListedPrice, machines: Sequence[tuple[str, Machine]]) -> list[str]:
    """Names of the studies whose GPUs are of an instance type's model.

    Raises:
        UsageError: where there is none, with what was measured.
    """
    gpu = entry.gpu if entry.gpus else None
    found = [
        name
        for name, machine in machines
        if gpu is not None and machine.gpus and all(same_gpu(gpu, own) for own in machine.gpus)
    ]
    if not found:
        measured = ", ".join(f"{name} {_gpus(machine)}" for name, machine in machines)
        raise UsageError(
            f"--instance-type {entry.price.instance_type}: it has {gpu or 'no GPU'}, and only what "
            f"was measured on the same GPU can be extrapolated (measured: {measured})"
        )
    return found


def _gpus(machine: Machine) -> str:
    return " and ".join(dict.fromkeys(machine.gpus)) or "no GPU"


def _unlikeness(entry: ListedPrice, machine: Machine) -> float:
    """How far apart the cores are that each GPU has: some of the work is theirs."""
    if entry.vcpus is None or not entry.gpus:
        return 0.0
    return abs(entry.vcpus / entry.gpus - machine.cores / len(machine.gpus))

"""Instance types ranked by the cost of a fleet of each."""

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
        study: name that is shown.
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
    """Instance types for a demand, best first.

    Attributes:
        nothing: (study, reason) where nothing met the limits.
        accepted: mismatches that the user has accepted.
    """

    demand: Demand
    estimates: tuple[InstanceEstimate, ...]
    nothing: tuple[tuple[str, str], ...]
    accepted: tuple[str, ...] = ()

    @property
    def best_measured(self) -> InstanceEstimate | None:
        """The best estimate that is not extrapolated."""
        return next((each for each in self.estimates if each.extrapolated is None), None)

    def to_json(self) -> dict[str, Any]:
        """Return it for programs: every figure with its unit and what it rests on."""
        return {
            "schema_version": SCHEMA_VERSION,
            "demand_per_second": self.demand.requests_per_second,
            "headroom": self.demand.headroom,
            "offers": [_estimate_to_json(each) for each in self.estimates],
            "nothing_within_the_limits": dict(self.nothing),
            "accepted": list(self.accepted),
        }


def _estimate_to_json(estimate: InstanceEstimate) -> dict[str, Any]:
    config = estimate.candidate.config
    return {
        "instance_type": estimate.price.instance_type,
        "study": estimate.study,
        "description": describe(config),
        "config": asdict(config),
        "price": asdict(estimate.price),
        "extrapolated": estimate.extrapolated,
        "warnings": list(estimate.warnings),
        "latency_percentile": estimate.latency_percentile,
        "metrics": {
            name: {**asdict(figure), "unit": METRICS[name]} if figure is not None else None
            for name, figure in estimate.metrics.items()
        },
    }


def recommend(
    studies: Sequence[StudyObservations],
    others: Sequence[ListedPrice],
    listed: Sequence[ListedPrice],
    demand: Demand,
    *,
    every_configuration: bool = False,
) -> Recommendation:
    """Rank the measured instance types, and others with the same GPUs.

    Args:
        others: instance types that were not measured.
        listed: hardware of the measured ones.
        every_configuration: rank all configurations of a study, not only its best.

    Raises:
        UsageError: where the GPU of one of the others was not measured.
    """
    estimates: list[InstanceEstimate] = []
    for each in studies:
        instance = listed_instance(listed, each.price.instance_type)
        own = [estimate_measured(o, each.price, instance, demand) for o in each.observations]
        own.sort(key=lambda estimate: estimate.rank)
        estimates += own if every_configuration else own[:1]
    nothing = [(each.study, each.nothing) for each in studies if each.nothing is not None]
    for entry in others:
        names = studies_with_gpu(entry, [(each.study, each.machine) for each in studies])
        candidates = [each for each in studies if each.study in names and each.observations]
        if candidates:
            nearest = min(
                candidates, key=lambda each: _cores_per_gpu_difference(entry, each.machine)
            )
            extrapolated = [estimate_extrapolated(o, entry, demand) for o in nearest.observations]
            estimates.append(min(extrapolated, key=lambda estimate: estimate.rank))
        else:
            reason = f"no study on {entry.gpu} has anything within the limits"
            nothing.append((entry.price.instance_type, reason))
    estimates.sort(key=lambda estimate: estimate.rank)
    return Recommendation(demand, tuple(estimates), tuple(nothing))


def studies_with_gpu(entry: ListedPrice, machines: Sequence[tuple[str, Machine]]) -> list[str]:
    """Return the names of the studies whose GPUs are of an instance type's model.

    Args:
        machines: with the names of their studies.

    Raises:
        UsageError: where there is none, naming the measured GPUs.
    """
    gpu = entry.gpu if entry.gpus else None
    names = [
        name
        for name, machine in machines
        if gpu is not None and machine.gpus and all(same_gpu(gpu, own) for own in machine.gpus)
    ]
    if not names:
        measured = ", ".join(f"{name} {_gpus(machine)}" for name, machine in machines)
        raise UsageError(
            f"--instance-type {entry.price.instance_type}: it has {gpu or 'no GPU'}, and only "
            f"measurements on the same GPU can be extrapolated (measured: {measured})"
        )
    return names


def _gpus(machine: Machine) -> str:
    return " and ".join(dict.fromkeys(machine.gpus)) or "no GPU"


def _cores_per_gpu_difference(entry: ListedPrice, machine: Machine) -> float:
    """Return how much cores per GPU differ, as some of the work is the CPU's."""
    if entry.vcpus is None or not entry.gpus:
        return 0.0
    return abs(entry.vcpus / entry.gpus - machine.cores / len(machine.gpus))

"""Cost and performance of a configuration on an instance type, measured or extrapolated.

Metrics have the names of SageMaker Inference Recommender where it has one; it has none for GPUs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from optimizer.fleet.price_list import ListedPrice
from optimizer.fleet.price_rules import same_gpu
from optimizer.machine.fingerprint import Machine
from optimizer.measurement.cost import (
    Candidate,
    Demand,
    Price,
    score,
    tie_break_key,
    usd_per_million,
)
from optimizer.measurement.level import Measurement
from optimizer.measurement.resource_use import MachineUse

METRICS: Mapping[str, str] = {
    "FleetCostPerHour": "$",
    "FleetCostPerMillion": "$",
    "InitialInstanceCount": "",
    "CostPerHour": "$",
    "CostPerInference": "$",
    "MaxInvocations": "per minute",
    "ModelLatency": "ms",
    "CpuUtilization": "%",
    "MemoryUtilization": "%",
    "GpuUtilization": "%",
    "GpuMemoryUtilization": "%",
    "GpuPower": "W",
    "ModelSetupTime": "s",
}
"""Units of the metrics. All but the first three are of one instance at its capacity."""

Basis = Literal["price", "confirmed", "measured", "extrapolated"]
BASES: tuple[Basis, ...] = ("price", "confirmed", "measured", "extrapolated")
"""Evidence of a figure, from the most to the least certain.

price: listed, or given in the space file. confirmed: measured again, interleaved with its rivals.
measured: once. extrapolated: from a measurement on something else.
"""


@dataclass(frozen=True)
class SourcedFigure:
    """A value with its evidence.

    Attributes:
        worked_out: whether it was computed from others; `basis` is then the weakest of theirs.
    """

    value: float
    basis: Basis
    worked_out: bool = False


def derived(value: float, *inputs: SourcedFigure) -> SourcedFigure:
    """Return a figure that was computed from others."""
    basis = max((each.basis for each in inputs), key=BASES.index)
    return SourcedFigure(value, basis, worked_out=True)


@dataclass(frozen=True)
class Observation:
    """A configuration as it was measured on one machine.

    Attributes:
        study: that measured it.
        candidate: with its capacity on the GPUs that were used.
        confirmed: whether the figures come from repeated measurements.
        latency_percentile, latency_ms: at the capacity, of the stream nearest to its limit.
        use: of the machine at the capacity; None where it was not recorded.
        gpu_memory_mib: of all used GPUs together.
        setup_seconds: time to load the model, and to start the server where that was necessary.
        warnings: of the load test at the capacity.
    """

    study: str
    machine: Machine
    candidate: Candidate
    confirmed: bool
    latency_percentile: float
    latency_ms: float
    use: MachineUse | None
    gpu_memory_mib: float
    setup_seconds: float
    warnings: tuple[str, ...] = ()

    @property
    def busy_cores(self) -> float | None:
        """Mean number of cores that the server used; None where it was not recorded."""
        if self.use is None or self.use.server_cpu_seconds is None:
            return None
        return self.use.server_cpu_seconds / self.use.seconds


@dataclass(frozen=True)
class InstanceEstimate:
    """One configuration on one instance type.

    Attributes:
        candidate: with its capacity and cost on the whole instance.
        extrapolated: from what; None for a measurement.
        warnings: limitations of the figures.
        metrics: by the names of `METRICS`; None for what was not recorded.
    """

    price: Price
    study: str
    candidate: Candidate
    latency_percentile: float
    extrapolated: str | None
    warnings: tuple[str, ...]
    metrics: Mapping[str, SourcedFigure | None]

    @property
    def fleet_usd_per_hour(self) -> float:
        """Price of the instances for the demand."""
        return self.candidate.score.fleet_usd_per_hour

    @property
    def rank(self) -> tuple[float, ...]:
        """Sort key, best first: cost, then measured before extrapolated, then the tie-breaks."""
        cost = round(self.fleet_usd_per_hour, 9)
        return (cost, self.extrapolated is not None, *tie_break_key(self.candidate))


def estimate_measured(
    observation: Observation, price: Price, instance: ListedPrice | None, demand: Demand
) -> InstanceEstimate:
    """Estimate the instance type of the measurement, with all of its GPUs.

    Args:
        instance: hardware of the type, where it is listed. GPUs that were not used are assumed to
            serve as much as those that were.
    """
    machine = observation.machine
    used, total = len(machine.gpus), matching_gpus(machine, instance)
    if total <= used:
        return _estimate(observation, price, demand, 1.0, None, machine.cores)
    basis = extrapolation_basis(used, total)
    return _estimate(observation, price, demand, total / used, basis, machine.cores)


def extrapolation_basis(used: int, total: int) -> str:
    """Return what the capacity of a whole instance was extrapolated from."""
    return f"{used} of {total} GPUs were used; certain only once all are loaded together"


def matching_gpus(machine: Machine, instance: ListedPrice | None) -> int:
    """Return the number of an instance type's GPUs if they are of the machine's model, else 0."""
    gpu = instance.gpu if instance is not None else None
    if instance is None or gpu is None or not machine.gpus:
        return 0
    return (instance.gpus or 0) if all(same_gpu(gpu, own) for own in machine.gpus) else 0


def estimate_extrapolated(
    observation: Observation, instance: ListedPrice, demand: Demand
) -> InstanceEstimate:
    """Estimate an instance type that was not measured and has GPUs of the same model."""
    used, total = len(observation.machine.gpus), matching_gpus(observation.machine, instance)
    assert total > 0, "checked before: only the same GPU can be extrapolated"
    basis = f"{total} x {instance.gpu}, measured on {used} in study {observation.study}"
    factor = total / used
    return _estimate(observation, instance.price, demand, factor, basis, instance.vcpus)


def _estimate(
    observation: Observation,
    price: Price,
    demand: Demand,
    factor: float,
    extrapolated: str | None,
    vcpus: int | None,
) -> InstanceEstimate:
    measurement = _scaled(observation.candidate.measurement, factor)
    capacity = measurement.capacity_per_second
    cost = score(capacity, measurement.capacity_low_per_second, price, demand)
    basis: Basis = "confirmed" if observation.confirmed else "measured"
    if extrapolated is not None:
        basis = "extrapolated"
    per_hour = SourcedFigure(price.usd_per_hour, "price")
    invocations = SourcedFigure(60 * capacity, basis)
    count = derived(cost.replicas, invocations)
    fleet = derived(cost.fleet_usd_per_hour, per_hour, count)
    each = usd_per_million(price.usd_per_hour, capacity, demand.inferences_per_request) / 1e6
    metrics = {
        "FleetCostPerHour": fleet,
        "FleetCostPerMillion": derived(cost.usd_per_million_at_demand, fleet),
        "InitialInstanceCount": count,
        "CostPerHour": per_hour,
        "CostPerInference": derived(each, per_hour, invocations),
        "MaxInvocations": invocations,
        "ModelLatency": SourcedFigure(observation.latency_ms, basis),
        # The use of the machine is not extrapolated.
        **({} if extrapolated is not None else _machine_metrics(observation, basis)),
    }
    return InstanceEstimate(
        price=price,
        study=observation.study,
        candidate=replace(observation.candidate, measurement=measurement, score=cost),
        latency_percentile=observation.latency_percentile,
        extrapolated=extrapolated,
        warnings=(
            *observation.warnings,
            *_cpu_warnings(observation.busy_cores, factor, vcpus),
        ),
        metrics={name: metrics.get(name) for name in METRICS},
    )


def _scaled(measurement: Measurement, factor: float) -> Measurement:
    high = measurement.load_factor_high
    return replace(
        measurement,
        load_factor=factor * measurement.load_factor,
        load_factor_low=factor * measurement.load_factor_low,
        load_factor_high=factor * high if high is not None else None,
    )


def _cpu_warnings(busy_cores: float | None, factor: float, vcpus: int | None) -> Iterator[str]:
    if factor > 1 and busy_cores is not None and vcpus is not None and busy_cores * factor > vcpus:
        yield (
            f"its {vcpus} cores would have to do the work of {busy_cores * factor:.1f}: "
            "expect a lower capacity"
        )


def _machine_metrics(observation: Observation, basis: Basis) -> Mapping[str, SourcedFigure | None]:
    """Return the use of the machine, in percent of its resources."""
    use, machine = observation.use, observation.machine
    gpus = use.gpus if use is not None else ()
    memory = use.server_memory_mib if use is not None else None
    gpu_memory = _sum([gpu.memory_mib for gpu in gpus])
    utilization = _sum([gpu.utilization_percent for gpu in gpus])
    values = {
        "CpuUtilization": _percent(observation.busy_cores, machine.cores),
        "MemoryUtilization": _percent(memory, 1024 * machine.memory_gib),
        "GpuUtilization": utilization / len(gpus) if utilization is not None else None,
        "GpuMemoryUtilization": _percent(gpu_memory, observation.gpu_memory_mib),
        "GpuPower": _sum([gpu.power_watts for gpu in gpus]),
    }
    figures = {k: SourcedFigure(v, basis) if v is not None else None for k, v in values.items()}
    # From the trial of the search: the confirm phase may find the model loaded.
    return {**figures, "ModelSetupTime": SourcedFigure(observation.setup_seconds, "measured")}


def _percent(part: float | None, whole: float) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def _sum(values: list[float | None]) -> float | None:
    """Return the sum; None without values, or where one is unknown."""
    present = [value for value in values if value is not None]
    return sum(present) if present and len(present) == len(values) else None

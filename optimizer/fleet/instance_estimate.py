"""What one configuration on one instance type costs and does, by the recommender's names. Pure.

Names are those of SageMaker Inference Recommender where it has one; its own know no GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from optimizer.fleet.figures import Basis, SourcedFigure, derived
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
from optimizer.measurement.level import MachineUse, Measurement

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
"""Units by name. Those of one instance at its capacity, but for the first three."""


@dataclass(frozen=True)
class Observation:
    """A configuration as it was measured on one machine.

    Attributes:
        study: that measured it.
        candidate: with its capacity on the GPUs that were used.
        confirmed: whether the figures are those of repeated measurements.
        latency_percentile, latency_ms: at the capacity, of the stream that is nearest to its limit,
            from when a request was due.
        use: what the machine did at the capacity, None where nobody watched.
        gpu_memory_mib: of the GPUs that were used, together.
        setup_seconds: loading the model; starting the server too, where that had to be.
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
        """Cores' worth of CPU time that the server took, None where it was not seen."""
        if self.use is None or self.use.server_cpu_seconds is None:
            return None
        return self.use.server_cpu_seconds / self.use.seconds


@dataclass(frozen=True)
class InstanceEstimate:
    """One configuration on one instance type.

    Attributes:
        candidate: with its capacity and cost on the whole instance.
        extrapolated: from what, None where it was measured.
        warnings: what a reader must know before trusting the figures.
        metrics: by the names of `METRICS`; None where nobody has seen it.
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
        """Of the instances that serve the demand."""
        return self.candidate.score.fleet_usd_per_hour

    @property
    def rank(self) -> tuple[float, ...]:
        """Ascending from the best; of equal costs what was measured, then by the rules for ties."""
        cents = round(self.fleet_usd_per_hour, 9)
        return (cents, self.extrapolated is not None, *tie_break_key(self.candidate))


def estimate_measured(
    seen: Observation, price: Price, instance: ListedPrice | None, demand: Demand
) -> InstanceEstimate:
    """On the instance type that the study is charged for, whole.

    Args:
        instance: what that has, where it is listed. Of more GPUs than were used, each is taken to
            serve as much, until all are loaded together.
    """
    machine = seen.machine
    used, every = len(machine.gpus), matching_gpus(machine, instance)
    if every <= used:
        return _offer(seen, price, demand, 1.0, None, machine.cores)
    how = extrapolation_basis(used, every)
    return _offer(seen, price, demand, every / used, how, machine.cores)


def extrapolation_basis(used: int, every: int) -> str:
    """What a capacity of a whole instance was extrapolated from."""
    return f"{used} of {every} GPUs were used; certain once all are loaded together"


def matching_gpus(machine: Machine, instance: ListedPrice | None) -> int:
    """GPUs that an instance type has of a machine's model; 0 where none is known."""
    gpu = instance.gpu if instance is not None else None
    if instance is None or gpu is None or not machine.gpus:
        return 0
    same = all(same_gpu(gpu, own) for own in machine.gpus)
    return instance.gpus or 0 if same else 0


def estimate_extrapolated(
    seen: Observation, instance: ListedPrice, demand: Demand
) -> InstanceEstimate:
    """On an instance type that nobody measured, with GPUs of the same model."""
    used, every = len(seen.machine.gpus), matching_gpus(seen.machine, instance)
    assert every > 0, "refused before: only the same GPU can be counted"
    how = f"{every} x {instance.gpu}, by what study {seen.study} measured on {used}"
    return _offer(seen, instance.price, demand, every / used, how, instance.vcpus)


def _offer(
    seen: Observation,
    price: Price,
    demand: Demand,
    times: float,
    extrapolated: str | None,
    vcpus: int | None,
) -> InstanceEstimate:
    measurement = _scaled(seen.candidate.measurement, times)
    capacity = measurement.capacity_per_second
    cost = score(capacity, measurement.capacity_low_per_second, price, demand)
    basis = _basis(seen, extrapolated is not None)
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
        "ModelLatency": SourcedFigure(seen.latency_ms, basis),
        # What else a machine does is not extrapolated.
        **({} if extrapolated is not None else _seen(seen, basis)),
    }
    return InstanceEstimate(
        price=price,
        study=seen.study,
        candidate=replace(seen.candidate, measurement=measurement, score=cost),
        latency_percentile=seen.latency_percentile,
        extrapolated=extrapolated,
        warnings=(*seen.warnings, *_too_few_cores(seen.busy_cores, times, vcpus)),
        metrics={name: metrics.get(name) for name in METRICS},
    )


def _basis(seen: Observation, extrapolated: bool) -> Basis:
    if extrapolated:
        return "extrapolated"
    return "confirmed" if seen.confirmed else "measured"


def _scaled(measurement: Measurement, times: float) -> Measurement:
    high = measurement.load_factor_high
    return replace(
        measurement,
        load_factor=times * measurement.load_factor,
        load_factor_low=times * measurement.load_factor_low,
        load_factor_high=times * high if high is not None else None,
    )


def _too_few_cores(busy: float | None, times: float, vcpus: int | None) -> Iterator[str]:
    """More GPUs take more of the CPU."""
    if times > 1 and busy is not None and vcpus is not None and busy * times > vcpus:
        yield f"its {vcpus} cores would have to do the work of {busy * times:.1f}: expect less"


def _seen(seen: Observation, basis: Basis) -> Mapping[str, SourcedFigure | None]:
    """What the machine did, in percent of what it has."""
    use, machine = seen.use, seen.machine
    gpus = use.gpus if use is not None else ()
    memory = use.server_memory_mib if use is not None else None
    gpu_memory = _sum([gpu.memory_mib for gpu in gpus])
    utilization = _sum([gpu.utilization_percent for gpu in gpus])
    values = {
        "CpuUtilization": _percent(seen.busy_cores, machine.cores),
        "MemoryUtilization": _percent(memory, 1024 * machine.memory_gib),
        "GpuUtilization": utilization / len(gpus) if utilization is not None else None,
        "GpuMemoryUtilization": _percent(gpu_memory, seen.gpu_memory_mib),
        "GpuPower": _sum([gpu.power_watts for gpu in gpus]),
    }
    figures = {k: SourcedFigure(v, basis) if v is not None else None for k, v in values.items()}
    # Of the search's trial: confirming loads a model that may have been there.
    return {**figures, "ModelSetupTime": SourcedFigure(seen.setup_seconds, "measured")}


def _percent(part: float | None, whole: float) -> float | None:
    return 100 * part / whole if part is not None and whole else None


def _sum(values: list[float | None]) -> float | None:
    """None where one of them is not known, or where there is none."""
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None

"""Plan a fleet for a demand over time, from what studies have measured."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from optimizer.analysis.comparability import refuse_incomparable, workload_identity
from optimizer.analysis.study_reading import StudyReading, read_studies
from optimizer.configuration.serving_config import ServingConfig, describe
from optimizer.errors import UsageError
from optimizer.files.atomic import write_json, write_text
from optimizer.fleet.instance_estimate import extrapolation_basis, matching_gpus
from optimizer.fleet.planning.demand_curve import DemandCurve, constant_demand
from optimizer.fleet.planning.demand_file import read_demand
from optimizer.fleet.planning.fleet_plan import Plan, PlanInputs, ScalingPolicy, plan_fleet
from optimizer.fleet.planning.fleet_simulation import SimulatedFleet
from optimizer.fleet.planning.instance import Instance, ServedStreams
from optimizer.fleet.planning.mix import FleetMix
from optimizer.fleet.planning.sizing import Survival
from optimizer.fleet.price_list import ListedPrice, price_list
from optimizer.fleet.price_rules import Accepted, PriceChoice, listed_instance, prices_for
from optimizer.measurement.cost import Demand, Price
from optimizer.report.plan_page import plan_page
from optimizer.search.level_runner import concurrency
from optimizer.simulator.served_network import offered_streams, served_network
from optimizer.study.decision import ConfirmedCapacity


@dataclass(frozen=True)
class PlanOptions:
    """Options of `plan`.

    Attributes:
        demand_per_second: the same all day; without any demand, that of the first study.
        daily: a demand that rises and falls over a day.
        trace: file of a recorded demand.
        peak_per_second: rate that the busiest step of the trace is scaled to.
        headroom: None for that of the first study.
        survive: what may be lost at the peak.
        most: available instances, by instance type.

    Raises:
        UsageError: for options that do not go together.
    """

    studies: tuple[str, ...]
    demand_per_second: float | None = None
    daily: DemandCurve | None = None
    trace: Path | None = None
    peak_per_second: float | None = None
    headroom: float | None = None
    survive: Survival = "nothing"
    zones: int = 3
    launch_seconds: float = 240.0
    most: Mapping[str, int] = field(default_factory=dict)
    rate: str | None = None
    region: str | None = None
    accepted: Collection[Accepted] = ()
    seed: int = 0
    results: Path = Path("results")

    def __post_init__(self) -> None:
        """Check that the options go together."""
        if self.peak_per_second is not None and self.trace is None:
            raise UsageError("--peak goes with --trace")
        demands = {
            "--demand": self.demand_per_second,
            "--daily": self.daily,
            "--trace": self.trace,
        }
        chosen = [name for name, value in demands.items() if value is not None]
        if len(chosen) > 1:
            raise UsageError(f"give one of {', '.join(demands)}, not {' and '.join(chosen)}")


@dataclass(frozen=True)
class Source:
    """The instance with the best configuration of a study, and that configuration in words."""

    instance: Instance
    described: str


@dataclass(frozen=True)
class PlanResult:
    """A plan, its inputs, and the files that show it.

    Attributes:
        plan: None where the available instances do not suffice.
        sources: by study, whose names are unique.
        nothing: names of studies in which nothing met the limits.
        page, data: in the folder of the first study.
    """

    curve: DemandCurve
    sources: tuple[Source, ...]
    nothing: tuple[str, ...]
    plan: Plan | None
    page: Path
    data: Path

    @property
    def described(self) -> Mapping[str, str]:
        """Configurations in words, by the name of the instance's study."""
        return {source.instance.name: source.described for source in self.sources}


def plan_for(options: PlanOptions) -> PlanResult:
    """Plan a fleet for a demand.

    Raises:
        UsageError: where there is no such study, or prices, workloads or options do not fit.
        StorageError: when files are damaged or cannot be written.
    """
    studies = read_studies(options.results, options.studies)
    refuse_incomparable(
        [
            (name, workload_identity(study.content, study.searched.workload))
            for name, study in studies.items()
        ]
    )
    first = next(iter(studies.values()))
    own = first.searched.demand
    curve = _curve(options, own)
    headroom = options.headroom if options.headroom is not None else own.headroom
    demand = Demand(curve.peak, headroom, own.inferences_per_request)
    machines = [(study.searched.price, study.machine) for study in studies.values()]
    listed = price_list()
    choice = PriceChoice(options.rate, options.region)
    prices = prices_for(machines, choice, listed, options.accepted)
    priced = list(zip(studies.items(), prices, strict=True))
    best = {name: study.decision(price, demand).best for (name, study), price in priced}
    sources = tuple(
        _source(name, study, capacity, price, listed, options.seed)
        for (name, study), price in priced
        if (capacity := best[name]) is not None
    )
    _refuse_unknown_types(options.most, sources)
    inputs = _inputs(options, curve, headroom)
    plan = plan_fleet([source.instance for source in sources], inputs) if sources else None
    folder = first.directory.root
    planned = PlanResult(
        curve=curve,
        sources=sources,
        nothing=tuple(name for name, capacity in best.items() if capacity is None),
        plan=plan,
        page=folder / "plan.html",
        data=folder / "plan.json",
    )
    if plan is not None:
        write_text(planned.page, plan_page(plan, planned.described))
        write_json(planned.data, _to_json(plan, planned.described))
    return planned


def _curve(options: PlanOptions, own: Demand) -> DemandCurve:
    if options.trace is not None:
        return read_demand(options.trace, options.peak_per_second)
    return options.daily or constant_demand(options.demand_per_second or own.requests_per_second)


def _inputs(options: PlanOptions, curve: DemandCurve, headroom: float) -> PlanInputs:
    return PlanInputs(
        curve,
        headroom,
        options.survive,
        options.zones,
        options.launch_seconds,
        dict(options.most),
        options.seed,
    )


def _refuse_unknown_types(most: Mapping[str, int], sources: Sequence[Source]) -> None:
    types = dict.fromkeys(source.instance.price.instance_type for source in sources)
    for name in most:
        if name not in types:
            raise UsageError(f"--most {name}: must be one of {', '.join(types) or 'none'}")


def _source(
    name: str,
    study: StudyReading,
    finding: ConfirmedCapacity,
    price: Price,
    listed: Sequence[ListedPrice],
    seed: int,
) -> Source:
    """Return the instance; of a study that used some of its GPUs, scaled to all of them."""
    candidate, entry = finding.candidate, listed_instance(listed, price.instance_type)
    described, copies = describe(candidate.config), 1
    if not finding.confirmed:
        described += f"; {finding.status}"
    used, present = len(study.machine.gpus), matching_gpus(study.machine, entry)
    if present > used:
        if present % used:
            raise UsageError(
                f"{name}: it used {used} of {present} GPUs, and {present} must be a multiple of "
                "the GPUs used: search with another number of them"
            )
        copies = present // used
        described += f"; extrapolated, {extrapolation_basis(used, present)}"
    measurement = candidate.measurement
    cold = study.directory.cold_start.read(candidate.config)
    instance = Instance(
        name=name,
        price=price,
        capacity_per_second=copies * measurement.capacity_per_second,
        capacity_low_per_second=copies * measurement.capacity_low_per_second,
        setup_seconds=study.setup_seconds(finding),
        served=_served(study, candidate.config),
        copies=copies,
        setup_measured=cold is not None,
    )
    try:
        return Source(instance.calibrated(seed), described)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _served(study: StudyReading, config: ServingConfig) -> ServedStreams:
    workload = study.searched.workload
    network = served_network(config, study.service, workload)
    return ServedStreams(network, offered_streams(workload), concurrency(config))


def _to_json(plan: Plan, described: Mapping[str, str]) -> dict[str, Any]:
    one = plan.single_type
    inputs = plan.inputs
    return {
        "demand": asdict(inputs.curve),
        "headroom": inputs.headroom,
        "survives": inputs.survival,
        "zones": inputs.zones,
        "launch_seconds": inputs.launch_seconds,
        "instances": [
            {
                "study": member.instance.name,
                "configuration": described[member.instance.name],
                "price": asdict(member.instance.price),
                "capacity_per_second": member.instance.capacity_per_second,
                "capacity_low_per_second": member.instance.capacity_low_per_second,
                "simulated_most_within_limits_per_second": member.response.most_within_per_second,
                "service_times_moved_by": member.instance.moved,
                "setup_seconds": member.instance.setup_seconds,
                "setup_measured": member.instance.setup_measured,
            }
            for member in plan.fleet.members
        ],
        "fleet": _mix(plan.fleet),
        "at_the_peak": [asdict(each) for each in plan.at_peak],
        "late_share_allowed": plan.allowed,
        "ways": [
            _scaling(policy, plan.allowed)
            for policy in (*plan.policies, *(one.autoscaled if one else ()))
        ],
        "smallest_fleet_of_one_type": _simulated(one.at_minimum if one else None),
        "one_instance_less": _simulated(one.below_minimum if one else None),
        "surviving": {
            name: _mix(mix) if mix is not None else None for name, mix in plan.surviving.items()
        },
        "losses": [
            {
                "lost": loss.lost,
                "left": _mix(loss.left),
                "at_the_peak": [asdict(each) for each in loss.at_peak],
                "waiting_seconds": loss.waiting_seconds if loss.left.instances else None,
            }
            for loss in plan.losses
        ],
    }


def _simulated(fleet: SimulatedFleet | None) -> dict[str, Any] | None:
    return asdict(fleet) if fleet is not None else None


def _mix(mix: FleetMix) -> dict[str, Any]:
    names = [member.instance.name for member in mix.members]
    return {
        "counts": dict(zip(names, mix.counts, strict=True)),
        "usd_per_hour": mix.usd_per_hour,
    }


def _scaling(policy: ScalingPolicy, allowed: float) -> dict[str, Any]:
    return {
        "name": policy.name,
        "usd_per_hour": policy.usd_per_hour,
        "usd_per_month": policy.usd_per_month,
        "instances": policy.charged.tolist(),
        "late_share": policy.late_share.tolist(),
        "steps_over_the_limit": policy.missed_steps(allowed),
        "policy": asdict(policy.policy) if policy.policy is not None else None,
    }

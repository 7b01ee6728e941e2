"""A planned fleet in sentences and tables, as the terminal and the page show it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from optimizer.fleet.planning.autoscaling import Metric, TargetTracking
from optimizer.fleet.planning.fleet_plan import MOST_AUTOSCALED, CapacityLoss, Plan, ScalingPolicy
from optimizer.fleet.planning.fleet_simulation import SimulatedFleet
from optimizer.fleet.planning.mix import FleetMember, FleetMix, keeps_limits
from optimizer.report import number_formats as form
from optimizer.report.table import Line, Part, Table

_UNITS: Mapping[Metric, tuple[str, float]] = {
    "rate": ("{:.4g}/s each", 1.0),
    "busy": ("{:.0f} % busy", 100.0),
    "queue": ("{:.3g} ms queue", 1.0),
}

_HOURS_SHOWN = 24

_Number = TypeVar("_Number", np.int64, np.float64)


def headline(plan: Plan) -> str:
    """Return the recommended fleet and its cost in one sentence."""
    constant = plan.policies[0]
    best = min(
        _policies(plan),
        key=lambda policy: (policy.missed_steps(plan.allowed) > 0, policy.usd_per_month),
    )
    text = (
        f"{fleet_text(plan.fleet)} for {form.rate(plan.inputs.curve.peak)} requests/s: "
        f"{form.usd(plan.fleet.usd_per_hour)} an hour, {form.usd(constant.usd_per_month)} a month"
    )
    if best.usd_per_month < constant.usd_per_month:
        saved = 1 - best.usd_per_month / constant.usd_per_month
        text += f"; {best.name} {form.usd(best.usd_per_month)} a month, {form.percent(saved)} less"
    return text + "."


def plan_parts(plan: Plan, described: Mapping[str, str]) -> list[Part]:
    """Return what a terminal shows of a plan.

    Args:
        described: configurations in words, by the name of the instance's study.
    """
    by_hour = hours(plan)
    more = [by_hour] if by_hour is not None else []
    return [Line(headline(plan), "good"), *tables(plan, described), *more]


def fleet_text(mix: FleetMix) -> str:
    """How many of which types."""
    counts = [
        f"{form.count(count)} x {_kind(member, mix)}"
        for member, count in zip(mix.members, mix.counts, strict=True)
        if count
    ]
    return " and ".join(counts) or "no instance"


def _kind(member: FleetMember, mix: FleetMix) -> str:
    """Its instance type, and the study where several are of that type."""
    kind = member.instance.price.instance_type
    alike = [m for m in mix.members if m.instance.price.instance_type == kind]
    return kind if len(alike) == 1 else f"{kind} ({member.instance.name})"


def tables(plan: Plan, described: Mapping[str, str]) -> list[Table]:
    """All of them, in the order of reading.

    Args:
        described: configurations in words, by the name of the instance's study.
    """
    return [_instances(plan, described), _over_time(plan), _peak(plan), _surviving(plan)]


def _instances(plan: Plan, described: Mapping[str, str]) -> Table:
    rows = [
        (
            member.instance.price.instance_type,
            member.instance.name,
            form.price_per_hour(member.instance.price.usd_per_hour),
            form.rate(member.instance.capacity_per_second),
            form.rate(member.instance.capacity_low_per_second),
            form.rate(member.response.most_within_per_second),
            f"{member.instance.moved - 1:+.0%}",
            f"{member.instance.setup_seconds:.1f}",
        )
        for member in plan.fleet.members
    ]
    return Table(
        "What one instance serves within the limits, requests/s",
        ("type", "study", "$/hour", "measured", "at least", "simulated", "scale", "setup, s"),
        tuple(rows),
        (
            *(f"{m.instance.name}: {described[m.instance.name]}" for m in plan.fleet.members),
            "Measured, at least: the capacity and its lower bound. Simulated: the highest steady "
            "load within the limits, with service times scaled (scale) so that the simulated "
            "capacity is the measured one. Fleets are sized by the lower of the two.",
            _setup_note(plan),
        ),
    )  # fmt: skip


def _setup_note(plan: Plan) -> str:
    """Return what the setup of each study's instances is."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for member in plan.fleet.members:
        names[member.instance.setup_measured].append(member.instance.name)
    parts = []
    if measured := names[True]:
        parts.append(
            "from the start of the server until its models serve, as measured "
            f"({', '.join(measured)})"
        )
    if loaded := names[False]:
        parts.append(
            f"the time to serve the configuration in its trial ({', '.join(loaded)}; "
            "run --with cold-start measures it from the start of the server)"
        )
    return f"Setup: {'; '.join(parts)}."


def _over_time(plan: Plan) -> Table:
    constant = plan.policies[0].usd_per_month
    steps = len(plan.inputs.curve.per_second)
    rows = [
        (
            policy.name,
            _span(policy.charged),
            form.usd(policy.usd_per_hour),
            form.usd(policy.usd_per_month),
            form.percent(policy.usd_per_month / constant),
            f"{policy.missed_steps(plan.allowed)} of {steps}",
            f"{policy.late_share.max():.2%}",
            _target(policy.policy),
        )
        for policy in _policies(plan)
    ]
    delay = plan.inputs.launch_seconds
    return Table(
        f"The fleet over time ({plan.inputs.curve.name})",
        ("policy", "instances", "$/hour", "$/month", "share", "over", "worst", "target"),
        tuple(rows),
        (
            f"An instance serves {delay:g} s after it is launched, plus its setup; it is charged "
            f"from the launch. Over: steps of {plan.inputs.curve.step_seconds:g} s in which more "
            f"than {form.fine_percent(plan.allowed)} of the requests are late; worst: the share "
            "of late requests in the worst step.",
            "Scheduled: the demand is known in advance. Target tracking: the metric is read every "
            "minute, instances are removed after five; at the highest target that keeps the limit "
            "in every step, else at the lowest that was tried; up to "
            f"{MOST_AUTOSCALED} times the recommended fleet.",
        ),
    )  # fmt: skip


def _peak(plan: Plan) -> Table:
    rows = [_peak_row("recommended", fleet_text(plan.fleet), plan.at_peak)]
    if plan.single_type is not None:
        kind, one = _kind(plan.single_type.member, plan.fleet), plan.single_type
        rows.append(_one_row("smallest", kind, one.at_minimum))
        if one.below_minimum is not None:
            rows.append(_one_row("one less", kind, one.below_minimum))
    rows += [_loss_row(loss) for loss in plan.losses]
    return Table(
        f"The peak of {form.rate(plan.inputs.curve.peak)} requests/s, every instance simulated",
        ("fleet", "instances", "latency, ms", "limit, ms", "late", "verdict"),
        tuple(rows),
        (
            "Requests are distributed at random, in proportion to the capacity of the instances; "
            "a least-loaded balancer does no worse. Waits: how long requests wait until the lost "
            "instances serve again, where the remaining ones are saturated.",
        ),
    )


def _peak_row(name: str, fleet: str, simulated: Sequence[SimulatedFleet]) -> tuple[str, ...]:
    worst = max(simulated, key=lambda each: each.latency_ms / each.limit_ms)
    requests = sum(each.per_second for each in simulated)
    late = sum(each.late_share * each.per_second for each in simulated) / requests
    verdict = "met" if keeps_limits(simulated) else "missed"
    return (
        name,
        fleet,
        form.milliseconds(worst.latency_ms),
        f"{worst.limit_ms:g}",
        f"{late:.2%}",
        verdict,
    )


def _one_row(name: str, kind: str, simulated: SimulatedFleet) -> tuple[str, ...]:
    return _peak_row(name, f"{form.count(simulated.instances)} x {kind}", [simulated])


def _loss_row(loss: CapacityLoss) -> tuple[str, ...]:
    name, fleet = f"{loss.lost} lost", fleet_text(loss.left)
    if loss.at_peak:
        return _peak_row(name, fleet, loss.at_peak)
    if math.isinf(loss.waiting_seconds):
        return (name, fleet, "-", "-", "100%", "nothing left")
    return (name, fleet, "-", "-", "-", f"waits {form.seconds(loss.waiting_seconds)}")


def _surviving(plan: Plan) -> Table:
    least = plan.surviving["nothing"]
    rows = []
    for name, mix in plan.surviving.items():
        what = {"nothing": "nothing", "instance": "an instance", "zone": "a zone"}[name]
        if mix is None:
            rows.append((what, "not available", "-", "-"))
            continue
        more = mix.usd_per_hour / least.usd_per_hour - 1 if least is not None else 0.0
        rows.append((what, fleet_text(mix), form.usd(mix.usd_per_hour), form.change(more)))
    return Table(
        f"What it costs to survive a loss at the peak, spread over {plan.inputs.zones} zones",
        ("loss of", "cheapest fleet", "$/hour", "more"),
        tuple(rows),
    )


def hours(plan: Plan) -> Table | None:
    """Demand and instances by the hour; None where the demand does not change."""
    curve = plan.inputs.curve
    if min(curve.per_second) == curve.peak:
        return None
    shown = min(_HOURS_SHOWN, len(curve.per_second))
    policies = _policies(plan)
    rows = []
    for hour in range(shown):
        begin, end = (n * curve.seconds / shown for n in (hour, hour + 1))
        rows.append(
            (
                _clock(begin),
                f"{_between(curve.rates, begin / curve.seconds, end / curve.seconds).max():,.1f}",
                *(
                    f"{_between(policy.charged, hour / shown, (hour + 1) / shown).max():,}"
                    for policy in policies
                ),
            )
        )
    names = [policy.name for policy in policies]
    return Table(
        "Peak per interval: demand, and instances",
        ("from", "requests/s", *names),
        tuple(rows),
    )


def _between(values: NDArray[_Number], begin: float, end: float) -> NDArray[_Number]:
    """Those of a stretch, given as shares of all; at least one."""
    first = int(begin * len(values))
    return values[first : max(first + 1, math.ceil(end * len(values)))]


def _clock(seconds: float) -> str:
    days, rest = divmod(round(seconds), 86_400)
    clock = f"{rest // 3600:02}:{rest % 3600 // 60:02}"
    return f"day {days + 1} {clock}" if days else clock


def _policies(plan: Plan) -> tuple[ScalingPolicy, ...]:
    return plan.all_policies


def _span(charged: NDArray[np.int64]) -> str:
    least, most = int(charged.min()), int(charged.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _target(policy: TargetTracking | None) -> str:
    if policy is None:
        return ""
    text, scale = _UNITS[policy.metric]
    return text.format(policy.target * scale)

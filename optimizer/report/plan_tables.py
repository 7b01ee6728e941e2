"""A planned fleet in words and tables, as the terminal and the page show it."""

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
    """What to do, in one sentence."""
    constant = plan.policies[0]
    best = min(_ways(plan), key=lambda way: (way.missed_steps(plan.allowed) > 0, way.usd_per_month))
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
        ("type", "study", "$/hour", "measured", "at least", "simulated", "times", "setup, s"),
        tuple(rows),
        (
            *(f"{m.instance.name}: {described[m.instance.name]}" for m in plan.fleet.members),
            "Measured, with its lower bound; simulated: the most under a steady load, once service "
            "times were changed (times) so that the simulated capacity is the measured one. Fleets "
            "are sized by the lower of the two last.",
        ),
    )  # fmt: skip


def _over_time(plan: Plan) -> Table:
    constant = plan.policies[0].usd_per_month
    steps = len(plan.inputs.curve.per_second)
    rows = [
        (
            way.name,
            _span(way.charged),
            form.usd(way.usd_per_hour),
            form.usd(way.usd_per_month),
            form.percent(way.usd_per_month / constant),
            f"{way.missed_steps(plan.allowed)} of {steps}",
            f"{way.late_share.max():.2%}",
            _target(way.policy),
        )
        for way in _ways(plan)
    ]
    delay = plan.inputs.launch_seconds
    return Table(
        f"The fleet over time ({plan.inputs.curve.name})",
        ("policy", "instances", "$/hour", "$/month", "share", "over", "worst", "target"),
        tuple(rows),
        (
            f"An instance serves {delay:g} s after it is ordered, and its setup; it is charged "
            f"from the order. Over: steps of {plan.inputs.curve.step_seconds:g} s in which more "
            f"than {plan.allowed:.1%} of the requests are late; worst: late in the worst step.",
            "Scheduled: as if the demand were known beforehand. Scaled on a metric: read every "
            "minute, fewer only after five; at the highest target that keeps the limit in every "
            "step, else at the lowest that was tried; up to "
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
            "Requests reach instances at random, by their capacity. A balancer that knows which is "
            "least busy does no worse. Waits: what requests wait when what was lost serves again, "
            "where less is left than what comes saturates.",
        ),
    )


def _peak_row(name: str, fleet: str, found: Sequence[SimulatedFleet]) -> tuple[str, ...]:
    worst = max(found, key=lambda each: each.latency_ms / each.limit_ms)
    requests = sum(each.per_second for each in found)
    late = sum(each.late_share * each.per_second for each in found) / requests
    verdict = "kept" if keeps_limits(found) else "missed"
    return (
        name,
        fleet,
        form.milliseconds(worst.latency_ms),
        f"{worst.limit_ms:g}",
        f"{late:.2%}",
        verdict,
    )


def _one_row(name: str, kind: str, found: SimulatedFleet) -> tuple[str, ...]:
    return _peak_row(name, f"{form.count(found.instances)} x {kind}", [found])


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
            rows.append((what, "cannot be had", "-", "-"))
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
    ways = _ways(plan)
    rows = []
    for hour in range(shown):
        begin, end = (n * curve.seconds / shown for n in (hour, hour + 1))
        rows.append(
            (
                _clock(begin),
                f"{_between(curve.rates, begin / curve.seconds, end / curve.seconds).max():,.1f}",
                *(
                    f"{_between(way.charged, hour / shown, (hour + 1) / shown).max():,}"
                    for way in ways
                ),
            )
        )
    names = [way.name for way in ways]
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


def _ways(plan: Plan) -> tuple[ScalingPolicy, ...]:
    return plan.all_policies


def _span(charged: NDArray[np.int64]) -> str:
    least, most = int(charged.min()), int(charged.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def _target(policy: TargetTracking | None) -> str:
    if policy is None:
        return ""
    text, scale = _UNITS[policy.metric]
    return text.format(policy.target * scale)

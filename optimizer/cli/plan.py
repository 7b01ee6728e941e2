"""`plan`: a fleet for a demand over time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console

from optimizer.cli.options import (
    Duration,
    Rate,
    Share,
    pricing_options,
    results_option,
    seed_option,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, print_path, print_sentence
from optimizer.commands.plan import PlanOptions, PlanResult, plan_for
from optimizer.fleet.planning.demand_curve import DemandCurve, daily_demand
from optimizer.fleet.planning.demand_file import MAX_RATE
from optimizer.report.plan_tables import plan_parts


class _Daily(click.ParamType[DemandCurve]):
    """LEAST:MOST[@HOUR]."""

    name = "daily"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> DemandCurve:
        if isinstance(value, DemandCurve):
            return value
        rates, _, hour = str(value).partition("@")
        try:
            least, most = map(float, rates.split(":"))
            at = float(hour or 14)
            if not (0 <= at < 24 and 0 < most <= MAX_RATE):
                raise ValueError(value)
            return daily_demand(most, least, at)
        except ValueError:
            self.fail(
                "must be LEAST:MOST or LEAST:MOST@HOUR, requests a second from 0 to above 0 and "
                f"an hour from 0 to below 24; got {value!r}",
                param,
                ctx,
            )


class _Most(click.ParamType[tuple[str, int]]):
    """TYPE=COUNT."""

    name = "count"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        name, _, count = str(value).partition("=")
        if not name or not count.isdecimal() or len(count) > 9:
            self.fail(f"must be INSTANCE_TYPE=COUNT; got {value!r}", param, ctx)
        return name, int(count)


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY...")
@click.option(
    "--demand", "demand_per_second", type=Rate(), metavar="PER_SECOND",
    help="Request rate per second, constant. Default: that of the first study.",
)  # fmt: skip
@click.option(
    "--daily", type=_Daily(), metavar="LEAST:MOST[@HOUR]",
    help="Request rates per second over a day, highest at an hour (default: 14).",
)  # fmt: skip
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="CSV",
    help="Recorded demand: columns seconds or timestamp, and requests_per_second; "
    "or one row for each arrival.",
)  # fmt: skip
@click.option(
    "--peak", "peak_per_second", type=Rate(), metavar="PER_SECOND",
    help="Scale --trace so that its busiest step has this rate.",
)  # fmt: skip
@click.option(
    "--headroom", type=Share(), metavar="SHARE",
    help="Spare capacity, as a share of the demand. Default: that of the first study.",
)  # fmt: skip
@click.option(
    "--survive", type=click.Choice(["nothing", "instance", "zone"]), default="nothing",
    show_default=True, help="What may be lost at the peak without missing the limit.",
)  # fmt: skip
@click.option(
    "--zones", type=click.IntRange(2, 100), default=3, show_default=True,
    help="Number of availability zones.",
)  # fmt: skip
@click.option(
    "--launch", "launch_seconds", type=Duration(), default="4m", show_default=True,
    help="Time to get a new instance, without the setup of its models.",
)  # fmt: skip
@click.option(
    "--most", type=_Most(), multiple=True, metavar="INSTANCE_TYPE=COUNT",
    callback=lambda _, __, counts: dict(counts),
    help="Number of available instances of a type. Repeatable.",
)  # fmt: skip
@pricing_options
@seed_option("the simulation")
@results_option
def plan(**options: Any) -> int:
    """Plan a fleet of the best configurations of STUDY (a name, or a folder) for a demand.

    The plan has instances over time, cost per hour and month, autoscaling with its delay, the loss
    of an instance or a zone, and mixed fleets. It is checked by simulation.
    """
    planned = plan_for(PlanOptions(**options))
    show_planned(OutputConsole(), planned)
    return 0 if planned.plan is not None else 1


def show_planned(console: Console, planned: PlanResult) -> None:
    """Print the plan, or that there is none."""
    for name in planned.nothing:
        print_sentence(console, f"{name}: nothing met the limits", "yellow")
    plan = planned.plan
    if plan is None:
        reason = (
            "the available instances do not suffice" if planned.sources else "there is no instance"
        )
        print_sentence(console, f"No fleet for {planned.curve.name}: {reason}.", "yellow")
        return
    print_parts(console, plan_parts(plan, planned.described))
    print_path(console, "page", planned.page)
    print_path(console, "data", planned.data)

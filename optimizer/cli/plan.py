"""`plan`: a fleet for a demand over time."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click
from rich.console import Console

from optimizer.cli.options import (
    SEED,
    Duration,
    Rate,
    Share,
    pricing_options,
    results_option,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, say, say_path
from optimizer.commands.plan import Planned, PlanRequest, plan_for
from optimizer.errors import UsageError
from optimizer.fleet.planning.demand_curve import DemandCurve, constant_demand, daily_demand
from optimizer.fleet.planning.demand_file import MAX_RATE, read_demand
from optimizer.fleet.price_rules import Accepted, PriceChoice
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
    "--demand", type=Rate(), metavar="PER_SECOND",
    help="The same all day; without any, the first study's own.",
)  # fmt: skip
@click.option(
    "--daily", "by_day", type=_Daily(), metavar="LEAST:MOST[@HOUR]",
    help="A day's rise and fall, most at an hour (14).",
)  # fmt: skip
@click.option(
    "--trace", type=click.Path(path_type=Path), metavar="CSV",
    help="Recorded: seconds or timestamp, and requests_per_second; or arrivals, one a row.",
)  # fmt: skip
@click.option(
    "--peak", type=Rate(), metavar="PER_SECOND",
    help="Scale --trace so that its busiest step has this rate.",
)  # fmt: skip
@click.option(
    "--headroom", type=Share(), metavar="SHARE",
    help="Kept free above the demand; the first study's own without.",
)  # fmt: skip
@click.option(
    "--survive", type=click.Choice(["nothing", "instance", "zone"]), default="nothing",
    show_default=True, help="What may be lost at the peak while the limit is kept.",
)  # fmt: skip
@click.option("--zones", type=click.IntRange(2, 100), default=3, show_default=True)
@click.option(
    "--launch", type=Duration(), default="4m", show_default=True,
    help="Until an ordered instance's machine is there; its models' setup comes on top.",
)  # fmt: skip
@click.option(
    "--most", type=_Most(), multiple=True, metavar="INSTANCE_TYPE=COUNT",
    help="Instances of a type that can be had.",
)  # fmt: skip
@pricing_options
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the simulation.")
@results_option
def plan(
    studies: tuple[str, ...],
    demand: float | None,
    by_day: DemandCurve | None,
    trace: Path | None,
    peak: float | None,
    headroom: float | None,
    survive: Literal["nothing", "instance", "zone"],
    zones: int,
    launch: float,
    most: tuple[tuple[str, int], ...],
    rate: str | None,
    region: str | None,
    accept: tuple[Accepted, ...],
    seed: int,
    results: Path,
) -> int:
    """Plan a fleet of what each STUDY (a name, or a folder) found, for a demand over time.

    Instances over time, cost an hour and a month, autoscaling with its delay, the loss of an
    instance or a zone, mixed fleets; checked by simulation.
    """
    if peak is not None and trace is None:
        raise UsageError("--peak goes with --trace")
    curve = _curve(demand, by_day, trace, peak)
    planned = plan_for(
        PlanRequest(
            studies=studies,
            results=results,
            demand=curve,
            headroom=headroom,
            survival=survive,
            zones=zones,
            launch_seconds=launch,
            most=dict(most),
            choice=PriceChoice(rate, region),
            accepted=accept,
            seed=seed,
        )
    )
    console = OutputConsole()
    show_planned(console, planned)
    return 0 if planned.plan is not None else 1


def _curve(
    demand: float | None, by_day: DemandCurve | None, trace: Path | None, peak: float | None
) -> DemandCurve | None:
    kinds = {"--demand": demand, "--daily": by_day, "--trace": trace}
    given = [name for name, value in kinds.items() if value is not None]
    if len(given) > 1:
        raise UsageError(f"give one of {', '.join(kinds)}, not {' and '.join(given)}")
    if demand is not None:
        return constant_demand(demand)
    return by_day if trace is None else read_demand(trace, peak)


def show_planned(console: Console, planned: Planned) -> None:
    """Print the plan, or that there is none."""
    for name in planned.nothing:
        say(console, f"{name}: nothing met the limits", "yellow")
    plan = planned.plan
    if plan is None:
        reason = (
            "the available instances do not suffice" if planned.sources else "there is no instance"
        )
        say(console, f"No fleet for {planned.curve.name}: {reason}.", "yellow")
        return
    print_parts(console, plan_parts(plan, planned.described))
    say_path(console, "page", planned.page)
    say_path(console, "data", planned.data)

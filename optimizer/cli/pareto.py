"""`pareto`: the cost of each latency limit, by what a study has measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from optimizer.analysis.latency_curve import LatencyCosts, PricedConfiguration, WithinLimit
from optimizer.cli.options import LatencyLimitMs, results_option, seed_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.plain_table import plain_table
from optimizer.commands.pareto import ParetoOptions, latency_costs
from optimizer.configuration.serving_config import ServingConfig, describe


@click.command()
@click.argument("study")
@click.option(
    "--limit", "limits_ms", type=LatencyLimitMs(), multiple=True,
    help="A latency limit such as 300ms. Repeatable. Default: eight limits around the study's own.",
)  # fmt: skip
@seed_option("the simulation")
@results_option
def pareto(**options: Any) -> int:
    """Compare the cost of latency limits, by what STUDY (a name, or a folder) has measured."""
    console = OutputConsole()
    with console.status("reading the trials, and simulating what was not measured"):
        costs, page = latency_costs(ParetoOptions(**options))
    show_costs(console, costs)
    console.print_line(f"page: {page}")
    return 0 if costs.front else 1


def show_costs(console: Console, costs: LatencyCosts) -> None:
    """Print the curve, who is on it, and how far to trust it."""
    numbers = _numbers(costs)
    console.print(_curve(costs, numbers))
    for config, number in numbers.items():
        _say(console, f"{number}: {describe(config)}")
    shortest = costs.shortest
    for stream in costs.streams:
        if stream.limit.latency_ms != shortest.limit.latency_ms:
            share = stream.limit.latency_ms / shortest.limit.latency_ms
            _say(
                console, f"the limits are those of {shortest.name}; {stream.name}: {share:g} times"
            )
    if not costs.front:
        console.print("nothing measured meets any of these limits", style="yellow")
    bases = {offer.basis for within in costs.curve for offer in _offers(within)}
    if "extrapolated" in bases:
        _say(console, "extrapolated: every load level lies on one side of the limit")
    if "predicted" in bases:
        _say(console, "predicted: not measured, expected to be at least 10% cheaper")
    _say(console, "* what the study searched for")
    if costs.unconfirmed:
        _say(console, "unconfirmed: nothing was measured again yet")
    _say(console, "intervals are at 95%; costs are compared, and fleets sized, by their lower end")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, highlight=False, markup=False)


def _offers(within: WithinLimit) -> list[PricedConfiguration]:
    """What is shown of a limit."""
    return [offer for offer in (within.cheapest, within.predicted) if offer is not None]


def _numbers(costs: LatencyCosts) -> dict[ServingConfig, str]:
    """Names for the table, whose rows are too short for whole configurations."""
    shown = dict.fromkeys(offer.config for within in costs.curve for offer in _offers(within))
    return {config: str(number) for number, config in enumerate(shown, 1)}


def _curve(costs: LatencyCosts, numbers: Mapping[ServingConfig, str]) -> Table:
    limit, demand = costs.shortest.limit, costs.demand.requests_per_second
    table = plain_table(
        f"Cheapest for {demand:g} requests/s within each limit of p{limit.percentile:g}",
        "limit, ms", "by", "how known", "served/s", "$ per million", "replicas", "$ an hour",
    )  # fmt: skip
    for column in table.columns[1:3]:
        column.justify = "left"
    for at in (1, 2, 3, 5):
        table.columns[at].no_wrap = True
    for within in costs.curve:
        name = f"{within.limit_ms:g}{'*' if within.limit_ms in costs.searched_ms else ''}"
        if within.cheapest is None:
            table.add_row(name, "", "not met")
        for offer in _offers(within):
            table.add_row(name, numbers[offer.config], *_cells(offer))
    return table


def _cells(offer: PricedConfiguration) -> list[str]:
    capacity = offer.capacity
    high = f"-{capacity.high:.0f}" if capacity.high is not None else "+"
    return [
        offer.basis,
        f"{capacity.per_second:.0f} ({capacity.low:.0f}{high})",
        f"{offer.usd_per_million:.4f}",
        str(offer.score.replicas),
        f"{offer.score.fleet_usd_per_hour:.3f}",
    ]

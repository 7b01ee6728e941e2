"""`pareto`: the cost of each latency limit, by what a study has measured."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.options import LatencyLimitMs, results_option, seed_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, print_path
from optimizer.commands.pareto import ParetoOptions, latency_costs
from optimizer.report.latency_cost_tables import latency_cost_parts


@click.command()
@click.argument("study")
@click.option(
    "--limit", "limits_ms", type=LatencyLimitMs(), multiple=True,
    help="A latency limit such as 300ms. Repeatable. Default: eight limits around the study's own.",
)  # fmt: skip
@seed_option("the simulation")
@results_option
def pareto(**options: Any) -> int:
    """Compare the cost of latency limits, from the measurements of STUDY (a name, or a folder)."""
    console = OutputConsole()
    with console.status("reading the trials, and simulating what was not measured"):
        costs, page = latency_costs(ParetoOptions(**options))
    print_parts(console, latency_cost_parts(costs))
    print_path(console, "page", page)
    return 0 if costs.front else 1

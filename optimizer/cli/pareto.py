"""`pareto`: what each latency limit costs, by what a study has measured."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import SEED, LatencyLimitMs, results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, say_path
from optimizer.commands.pareto import ParetoRequest, latency_costs
from optimizer.report.latency_cost_tables import latency_cost_parts


@click.command()
@click.argument("study")
@click.option(
    "--limit", "limits_ms", type=LatencyLimitMs(), multiple=True,
    help="A latency limit such as 300ms, repeatable; some around the study's own without.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the simulation.")
@results_option
def pareto(study: str, limits_ms: tuple[float, ...], seed: int, results: Path) -> int:
    """Say what each latency limit costs, by what STUDY, the name of a study, has measured."""
    console = OutputConsole()
    with console.status("reading the trials, and simulating what was not measured"):
        costs, page = latency_costs(ParetoRequest(study, results, limits_ms, seed))
    print_parts(console, latency_cost_parts(costs))
    say_path(console, "page", page)
    return 0 if costs.front else 1

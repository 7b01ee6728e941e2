"""`report`: a study as one page, and as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import SEED, results_option
from optimizer.cli.output import OutputConsole
from optimizer.commands.report import report_study


@click.command()
@click.argument("study")
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of the simulation.")
@results_option
def report(study: str, seed: int, results: Path) -> int:
    """Write what STUDY (a name, or a folder) found as one page and as Markdown."""
    console = OutputConsole()
    with console.status("reading the trials, and simulating what was not measured"):
        found = report_study(results, study, seed)
    console.print(found.report.outcome.headline(), highlight=False, markup=False)
    for what, path in (("page", found.page), ("Markdown", found.markdown)):
        console.print(f"{what}: {path}", markup=False, highlight=False, soft_wrap=True)
    return 0 if found.report.outcome.best is not None else 1

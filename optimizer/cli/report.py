"""`report`: write a study as a page and as Markdown."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import results_option, seed_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_path
from optimizer.commands.report import report_study


@click.command()
@click.argument("study")
@seed_option("the simulation")
@results_option
def report(study: str, seed: int, results: Path) -> int:
    """Write the results of STUDY (a name, or a folder) as a page and as Markdown."""
    console = OutputConsole()
    with console.status("reading the trials, and simulating what was not measured"):
        written = report_study(results, study, seed)
    console.print(written.report.outcome.headline(), highlight=False)
    print_path(console, "page", written.page)
    print_path(console, "Markdown", written.markdown)
    return 0 if written.report.outcome.best is not None else 1

"""`compare`: two or more studies side by side."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.options import json_option, results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, print_path
from optimizer.commands.compare import CompareOptions, compare_studies
from optimizer.report.comparison_tables import comparison_parts


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY STUDY...")
@json_option("the comparison")
@results_option
def compare(**options: Any) -> int:
    """Compare studies with the first one.

    STUDY is a name in the folder of results, or the path of a study's folder that was copied from
    another host. Studies of different workloads are refused, with every difference.
    """
    console, chosen = OutputConsole(), CompareOptions(**options)
    print_parts(console, comparison_parts(compare_studies(chosen)))
    if chosen.json is not None:
        print_path(console, "data", chosen.json)
    return 0

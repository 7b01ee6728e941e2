"""`compare`: two or more studies side by side."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_parts, say_path
from optimizer.commands.compare import CompareRequest, compare_studies
from optimizer.report.comparison_tables import comparison_parts


@click.command()
@click.argument("studies", nargs=-1, required=True, metavar="STUDY STUDY...")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE",
    help="Write the comparison for programs too.",
)  # fmt: skip
@results_option
def compare(studies: tuple[str, ...], json_file: Path | None, results: Path) -> int:
    """Put studies side by side, all relative to the first.

    STUDY is a name in the folder of results, or the path of a study's folder that was copied from
    another host. What did not ask the same of its machine is refused, with every difference.
    """
    console = OutputConsole()
    comparison = compare_studies(CompareRequest(studies, results, json_file))
    print_parts(console, comparison_parts(comparison))
    if json_file is not None:
        say_path(console, "data", json_file)
    return 0

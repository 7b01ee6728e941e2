"""`diff`: show the differences between two exported bundles."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_sentence, print_table
from optimizer.export.bundle.checks import check_files
from optimizer.export.bundle.difference import BundleDifference, FigureChange, difference
from optimizer.export.bundle.manifest import read_bundle
from optimizer.report.table import Table


@click.command()
@click.argument("before", type=click.Path(path_type=Path), metavar="DIR_A")
@click.argument("after", type=click.Path(path_type=Path), metavar="DIR_B")
def diff(before: Path, after: Path) -> int:
    """Show the changes from the exported bundle DIR_A to DIR_B, and their cost."""
    console = OutputConsole()
    bundles = [read_bundle(before), read_bundle(after)]
    show_difference(console, difference(*(bundle.manifest for bundle in bundles)))
    for bundle in bundles:
        files = check_files(bundle)
        if files.outcome == "fail":
            print_sentence(console, f"{bundle.root} differs from its manifest: {files.text}")
    return 0


def show_difference(console: Console, bundles: BundleDifference) -> None:
    """Print the changes in words, the figures side by side, and how far to trust them."""
    if bundles.same:
        print_sentence(console, "the manifests are the same")
    for change in bundles.changes:
        print_sentence(console, f"{change.kind}: {change.what}: {change.before} -> {change.after}")
    for path in bundles.files:
        print_sentence(console, f"file: {path} differs")
    rows = tuple((figure.what, *_cells(figure)) for figure in bundles.figures)
    print_table(console, Table("Cost", ("", "before", "after", "ratio"), rows))
    for caveat in bundles.caveats:
        print_sentence(console, caveat)


def _cells(figure: FigureChange) -> tuple[str, str, str]:
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
    return f"{figure.before:,.4g}", f"{figure.after:,.4g}", ratio

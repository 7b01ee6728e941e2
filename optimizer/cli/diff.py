"""`diff`: show the differences between two exported bundles."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from optimizer.cli.output import OutputConsole
from optimizer.cli.plain_table import plain_table
from optimizer.export.bundle.checks import check_files
from optimizer.export.bundle.difference import BundleDifference, FigureChange, difference
from optimizer.export.bundle.manifest import read_bundle


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
            _say(console, f"{bundle.root} is not what its manifest says: {files.text}")
    return 0


def show_difference(console: Console, found: BundleDifference) -> None:
    """Print the changes in words, the figures side by side, and how far to trust them."""
    if found.same:
        _say(console, "by their manifests both serve the same in the same way")
    for change in found.changes:
        _say(console, f"{change.kind}: {change.what}: {change.before} -> {change.after}")
    for path in found.files:
        _say(console, f"file: {path} differs")
    table = plain_table("Cost", "", "before", "after", "ratio")
    for figure in found.figures:
        table.add_row(figure.what, *_cells(figure))
    console.print(table)
    for caveat in found.caveats:
        _say(console, caveat)


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _cells(figure: FigureChange) -> tuple[str, str, str]:
    ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
    return f"{figure.before:,.4g}", f"{figure.after:,.4g}", ratio

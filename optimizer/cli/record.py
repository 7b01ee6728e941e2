"""`record`: every configuration of a space, measured into a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.options import (
    SEED,
    Verbosity,
    cache_option,
    results_option,
    verbosity_options,
)
from optimizer.cli.output import ResilientConsole
from optimizer.cli.watchers import watching
from optimizer.commands.record import RecordOptions, record_space
from optimizer.errors import EverythingFailedError


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=SEED, default=0, show_default=True,
    help="Random seed of the order of measuring and of arrivals.",
)  # fmt: skip
@verbosity_options
@results_option
@cache_option
def record(verbosity: Verbosity | None, **options: Any) -> int:
    """Measure every configuration of SPACE (a YAML file) into a CSV table.

    Rerun the command to resume. Exit code 1: no configuration met the limits; 4: fewer than half of
    them could be measured.
    """
    console = ResilientConsole()
    with watching(console, verbosity) as watch:
        recorded = record_space(RecordOptions(**options), watch)
    console.print_line(f"table: {recorded.table}")
    if recorded.unmeasured is not None:
        raise EverythingFailedError(recorded.unmeasured)
    return 0 if recorded.within_limits else 1

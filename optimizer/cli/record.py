"""`record`: every configuration of a space, measured into a table."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.options import Verbosity, run_options, seed_option, space_argument
from optimizer.cli.output import ResilientConsole
from optimizer.cli.terminal import print_path
from optimizer.cli.watchers import watching
from optimizer.commands.record import RecordOptions, record_space
from optimizer.errors import EverythingFailedError


@click.command()
@space_argument
@seed_option("the order of measuring and of arrivals")
@run_options
def record(verbosity: Verbosity | None, **options: Any) -> int:
    """Measure every configuration of SPACE (a YAML file) into a CSV table.

    Rerun the command to resume. Exit code 1: no configuration met the limits; 4: fewer than half of
    them could be measured.
    """
    console = ResilientConsole()
    with watching(console, verbosity) as watch:
        recorded = record_space(RecordOptions(**options), watch)
    print_path(console, "table", recorded.table)
    if recorded.unmeasured is not None:
        raise EverythingFailedError(recorded.unmeasured)
    return 0 if recorded.within_limits else 1

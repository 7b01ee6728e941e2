"""`record`: every configuration of a space, measured into a table."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.options import (
    SEED,
    Said,
    cache_option,
    results_option,
    said_options,
)
from optimizer.cli.output import LastingConsole
from optimizer.cli.watchers import watching
from optimizer.commands.parts import default_cache
from optimizer.commands.record import RecordRequest, record_space
from optimizer.errors import EverythingFailedError


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@click.option(
    "--seed", type=SEED, default=0, show_default=True, help="Of the order and the arrivals."
)
@said_options
@results_option
@cache_option
def record(space: Path, seed: int, said: Said | None, results: Path, cache: Path | None) -> int:
    """Measure every configuration of SPACE (a YAML file) into a CSV table, or go on with it.

    Exit code 1: none of them met the limits; 4: less than half of them could be measured.
    """
    request = RecordRequest(space, results, (cache or default_cache()).absolute(), seed)
    console = LastingConsole()
    with watching(console, said) as watch:
        found = record_space(request, watch)
    console.print(f"table: {found.table}", markup=False, highlight=False, soft_wrap=True)
    if found.unmeasured is not None:
        raise EverythingFailedError(found.unmeasured)
    return 0 if found.within_limits else 1

"""`measure`: one configuration, no search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer.cli.measurement_tables import show_measured
from optimizer.cli.options import (
    Rate,
    Verbosity,
    run_options,
    seed_option,
    settings_option,
    space_argument,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.watchers import watching
from optimizer.commands.measure import MeasureOptions, measure_configuration


@click.command()
@space_argument
@settings_option
@click.option("--curve", is_flag=True, help="Measure the load-latency curve too.")
@click.option(
    "--rate", "rate_per_second", type=Rate(), metavar="PER_SECOND",
    help="Measure only this request rate.",
)  # fmt: skip
@click.option(
    "--users", type=click.Path(path_type=Path), metavar="FILE",
    help="Run only a user load (PHASES or STAIRS, JSON).",
)  # fmt: skip
@click.option(
    "--with", "second_opinion", type=click.Choice(["perf_analyzer"]),
    help="Measure the same load level with another tool.",
)  # fmt: skip
@seed_option("the arrivals")
@run_options
def measure(verbosity: Verbosity | None, **options: Any) -> int:
    """Measure one configuration of SPACE (a YAML file): its capacity within the latency limit.

    Exit code 1: no load met the limits; with --rate, that load did not; with --users, no part of
    it did, or requests failed.
    """
    console = OutputConsole()
    with watching(console, verbosity) as watch:
        measured = measure_configuration(MeasureOptions(**options), watch)
    show_measured(console, measured)
    return 0 if measured.load_test.missed is None else 1

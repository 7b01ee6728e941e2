"""`measure`: one configuration, no search."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.measured import show_measured
from optimizer.cli.options import (
    SEED,
    Rate,
    Said,
    cache_option,
    results_option,
    said_options,
    settings_option,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.watchers import watching
from optimizer.commands.measure import MeasureRequest, measure_configuration
from optimizer.commands.parts import default_cache
from optimizer.errors import UsageError


@click.command()
@click.argument("space", type=click.Path(path_type=Path))
@settings_option
@click.option("--curve", is_flag=True, help="Measure the load-latency curve as well.")
@click.option(
    "--rate", type=Rate(), metavar="PER_SECOND",
    help="Measure at this rate alone.",
)  # fmt: skip
@click.option(
    "--users", type=click.Path(path_type=Path), metavar="FILE",
    help="Run a user load (PHASES or STAIRS, JSON) alone.",
)  # fmt: skip
@click.option(
    "--with", "other", type=click.Choice(["perf_analyzer"]),
    help="Have another tool measure the same level.",
)  # fmt: skip
@click.option("--seed", type=SEED, default=0, show_default=True, help="Of arrivals.")
@said_options
@results_option
@cache_option
def measure(
    space: Path,
    settings: dict[str, str],
    curve: bool,
    rate: float | None,
    users: Path | None,
    other: str | None,
    seed: int,
    said: Said | None,
    results: Path,
    cache: Path | None,
) -> int:
    """Measure one configuration of SPACE (a YAML file): its capacity within the latency limit.

    Exit code 1: no load met the limits; with --rate, that load did not; with --users, no part of
    it did, or requests failed.
    """
    modes = {"--curve": curve, "--rate": rate is not None, "--users": users is not None}
    given = [name for name, on in modes.items() if on]
    if len(given) > 1:
        raise UsageError(f"give one of {', '.join(modes)}, not {' and '.join(given)}")
    if users is not None and other is not None:
        raise UsageError(f"--with {other} goes with rates, not with --users")
    request = MeasureRequest(
        space=space,
        settings=settings,
        results=results,
        cache=(cache or default_cache()).absolute(),
        seed=seed,
        curve=curve,
        rate_per_second=rate,
        users=users,
        second_opinion=other is not None,
    )
    console = OutputConsole()
    with watching(console, said) as watch:
        measured = measure_configuration(request, watch)
    show_measured(console, measured)
    return 0 if measured.found.missed is None else 1

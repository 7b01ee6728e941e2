"""`export`: write a study's best configuration as a directory for production."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from optimizer import __version__
from optimizer.cli.options import (
    allow_code_option,
    cache_option,
    results_option,
    server_options,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line, print_path
from optimizer.cli.watchers import watching
from optimizer.commands.export import FORMATS, ExportOptions, export_study


@click.command()
@click.argument("study")
@click.option("--trial", type=int, metavar="N", help="Export this trial. Default: the best.")
@click.option(
    "--format", type=click.Choice(list(FORMATS)), default="repository",
    show_default=True, help="Format of the directory.",
)  # fmt: skip
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="Folder to write: a new or an empty one.",
)  # fmt: skip
@click.option(
    "--base", type=click.Path(path_type=Path), metavar="REPOSITORY",
    help="Model repository that --format patch is for.",
)  # fmt: skip
@click.option(
    "--no-examples", "examples", is_flag=True, flag_value=False, default=True,
    help="Start no server to record example outputs, which `verify` compares.",
)  # fmt: skip
@allow_code_option
@server_options
@results_option
@cache_option
def export(**options: Any) -> int:
    """Write the best configuration of STUDY (a name, or a folder) as a directory for production.

    The configuration is served once to record example outputs, on a server as in the study's
    measurements, or on that of --launcher.
    """
    chosen = ExportOptions(**options)
    console = OutputConsole()
    with watching(console) as watch:
        manifest = export_study(chosen, watch, f"triton-cost-optimizer {__version__}")
    score = manifest.recommended.score
    replicas = f"{score.replicas} replica{'s' if score.replicas != 1 else ''}"
    print_line(console, f"trial {manifest.trial} of {manifest.study}: {manifest.description}")
    print_line(
        console,
        f"{manifest.measured.capacity_per_second:,.0f}/s a replica, {replicas},"
        f" ${score.fleet_usd_per_hour:.3f} an hour",
    )
    if not manifest.measured.confirmed:
        print_line(console, "not confirmed: measured in one trial only")
    for reason in manifest.missing:
        print_line(console, f"missing: {reason}")
    print_path(console, chosen.format, chosen.target)
    return 0

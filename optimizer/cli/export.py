"""`export`: a study's winner as a directory for production."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer import __version__
from optimizer.cli.options import (
    cache_option,
    results_option,
    server_options,
)
from optimizer.cli.output import OutputConsole
from optimizer.cli.watchers import watching
from optimizer.commands.export import FORMATS, ExportRequest, export_study
from optimizer.commands.parts import default_cache


@click.command()
@click.argument("study")
@click.option("--trial", type=int, metavar="N", help="Another trial than the best.")
@click.option(
    "--format", "format_name", type=click.Choice(list(FORMATS)), default="repository",
    show_default=True, help="What it is written as.",
)  # fmt: skip
@click.option(
    "--to", "target", type=click.Path(path_type=Path), required=True, metavar="DIR",
    help="A new folder, or an empty one.",
)  # fmt: skip
@click.option(
    "--no-examples", is_flag=True,
    help="Record no outputs, which needs a server; `verify` cannot compare them then.",
)  # fmt: skip
@server_options
@results_option
@cache_option
def export(
    study: str,
    trial: int | None,
    format_name: str,
    target: Path,
    no_examples: bool,
    server: dict[str, str],
    results: Path,
    cache: Path | None,
) -> int:
    """Write the best configuration of STUDY (a name, or a folder) as a directory for production.

    It is served once, so that its outputs are recorded: by the kind of server that the study was
    measured on, or by the one of --launcher.
    """
    request = ExportRequest(
        study=study,
        results=results,
        cache=(cache or default_cache()).absolute(),
        target=target,
        made_by=f"triton-cost-optimizer {__version__}",
        format=format_name,
        trial=trial,
        server=server,
        examples=not no_examples,
    )
    console = OutputConsole()
    with watching(console) as watch:
        manifest = export_study(request, watch)
    score = manifest.recommended.score
    for text in (
        f"trial {manifest.trial} of {manifest.study}: {manifest.description}",
        f"{manifest.measured.capacity_per_second:,.0f}/s a replica, {score.replicas} replicas,"
        f" ${score.fleet_usd_per_hour:.3f} an hour",
        *(
            ["unconfirmed: of one trial, not measured again"]
            if not manifest.measured.confirmed
            else []
        ),
        *(f"missing: {reason}" for reason in manifest.missing),
        f"{format_name}: {target}",
    ):
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return 0

"""`dashboard`: a study in optuna-dashboard."""

from __future__ import annotations

from pathlib import Path

import click

from optimizer.cli.interruption import until_interrupted
from optimizer.cli.options import results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.watchers import PlainLines
from optimizer.commands.dashboard import DashboardRequest, open_dashboard
from optimizer.study.dashboard.server import HOST


@click.command()
@click.argument("study")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
    help="On 127.0.0.1; 0 takes any that is free.",
)  # fmt: skip
@click.option("--storage", help="URL of the study's database; its journal without.")
@results_option
def dashboard(study: str, port: int, storage: str | None, results: Path) -> None:
    """Show STUDY in a browser, on this machine alone, until Ctrl-C.

    It changes nothing, and may be left open while the search goes on.
    """
    console = OutputConsole()
    request = DashboardRequest(study, results, storage, port)
    with until_interrupted(), open_dashboard(request, PlainLines(console)) as server:
        address = f"http://{HOST}:{server.server_port}/dashboard"
        console.print(f"{study}: {address} (Ctrl-C ends it)", highlight=False, soft_wrap=True)
        server.serve_forever()

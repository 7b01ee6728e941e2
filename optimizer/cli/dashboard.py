"""`dashboard`: a study in optuna-dashboard."""

from __future__ import annotations

from typing import Any

import click

from optimizer.cli.interruption import until_interrupted
from optimizer.cli.options import results_option, storage_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line
from optimizer.commands.dashboard import DashboardOptions, open_dashboard
from optimizer.study.dashboard.server import HOST


@click.command()
@click.argument("study")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8080, show_default=True,
    help="Port on 127.0.0.1; 0 takes any that is free.",
)  # fmt: skip
@storage_option
@results_option
def dashboard(**options: Any) -> None:
    """Show STUDY in optuna-dashboard until Ctrl-C. It can only be opened on this machine.

    The study is not changed, and its search may be running.
    """
    console = OutputConsole()
    chosen = DashboardOptions(**options)
    with until_interrupted(), open_dashboard(chosen) as server:
        address = f"http://{HOST}:{server.server_port}/dashboard"
        print_line(console, f"{chosen.study}: {address} (Ctrl-C ends it)")
        server.serve_forever()

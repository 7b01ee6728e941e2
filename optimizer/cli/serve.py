"""`serve`: serve a study's best configuration, or an exported bundle, on this machine."""

from __future__ import annotations

import time
from typing import Any

import click

from optimizer.cli.interruption import until_interrupted
from optimizer.cli.options import allow_code_option, results_option
from optimizer.cli.output import OutputConsole
from optimizer.cli.terminal import print_line
from optimizer.cli.watchers import PlainLines
from optimizer.commands.serve import Servable, ServeOptions, find_servable, serving
from optimizer.errors import ServerFailure

_SECONDS_BETWEEN = 0.5

_PORT = click.IntRange(0, 65535)


@click.command()
@click.argument("subject", metavar="STUDY|DIR")
@click.option("--baseline", is_flag=True, help="Serve the study's baseline, to roll back.")
@click.option(
    "--http-port", type=_PORT, default=8000, show_default=True,
    help="HTTP port on 127.0.0.1; 0 takes any that is free.",
)  # fmt: skip
@click.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="gRPC port.")
@click.option("--metrics-port", type=_PORT, default=8002, show_default=True, help="Metrics port.")
@click.option(
    "--print", "print_only", is_flag=True,
    help="Only print the commands that start the same server by hand.",
)  # fmt: skip
@allow_code_option
@results_option
def serve(print_only: bool, **options: Any) -> None:
    """Serve the best configuration of STUDY, or the exported bundle DIR, until Ctrl-C.

    The server is started as in the study's measurements, and listens on this machine only. Exit
    code 0: it was ended by Ctrl-C; 4: it did not start, or ended by itself.
    """
    console = OutputConsole()
    servable = find_servable(ServeOptions(**options))
    if print_only:
        click.echo(servable.by_hand())
        return
    watch = PlainLines(console)
    consent = bool(options["allow_code"])
    with until_interrupted(), serving(servable, allow_code=consent, watch=watch) as server:
        for line in _introduction(servable):
            print_line(console, line)
        while (ended := server.exit_reason()) is None:
            time.sleep(_SECONDS_BETWEEN)
        raise ServerFailure(ended)


def _introduction(servable: Servable) -> list[str]:
    endpoint = servable.endpoint
    return [
        f"serving {servable.root}: {servable.description}",
        f"HTTP http://{endpoint.http}, gRPC {endpoint.grpc}, "
        f"metrics http://{endpoint.metrics}/metrics",
        "an inference:",
        servable.example_request(),
        "the same server by hand:",
        servable.by_hand(),
        "Ctrl-C ends it",
    ]
